//! What is connected to what. Each line is a driver side, a device side, the ways between them and
//! the ring formats; its rows are all combinations.

use crate::driver::Driver::*;
use crate::peer::Peer::*;
use crate::row::Ring::{self, Packed, Split};
use crate::row::Setting::{Converted, Indirect, Iommu, IommuBriefly, OutOfOrder, TwoQueues};
use crate::row::Way::{self, Auto, Copy, Direct, Pass, Remote, Translate};
use crate::row::{Line, line};
use crate::story::Story::{
    BridgeRestarts, DeviceRestarts, DriverReturns, FirmwareBoots, Grows, Migrates,
};

/// All ways through viaduct where memory is shared.
const BRIDGED: &[Way] = &[Pass, Translate, Copy];
/// The same, and the daemon itself.
const FROM_DIRECT: &[Way] = &[Direct, Pass, Translate, Copy];
/// Ways on which a guest may lose its device for a while.
const RESTARTABLE: &[Way] = &[Direct, Translate, Copy];
/// Ways that show a device rings of another format than the driver's.
const RELAYED: &[Way] = &[Translate, Copy];
const BOTH: &[Ring] = &[Split, Packed];

/// The table, as it is run each time.
#[rustfmt::skip]
pub const TABLE: &[Line] = &[
    // driver side         device side         ways                  rings
    line(Guest("6.12"),    QemuStorageDaemon, FROM_DIRECT,          &[Split]),
    line(Guest("7.2"),     QemuStorageDaemon, &[Copy],              &[Split]),
    line(Guest("6.12"),    OwnDisk,           BRIDGED,              BOTH),
    line(Guest("6.12"),    Passt,             BRIDGED,              &[Split]),
    line(Guest("6.12"),    Testpmd,           BRIDGED,              BOTH),
    line(Guest("6.12"),    OwnEcho,           BRIDGED,              BOTH),
    line(Guest("6.12"),    Virtiofsd,         BRIDGED,              &[Split]),
    line(Guest("6.12"),    VhostDeviceRng,    BRIDGED,              &[Split]),

    line(Guest("6.12"),    QemuStorageDaemon, RELAYED,              &[Packed]),
    line(Guest("6.12"),    Passt,             RELAYED,              &[Packed]),
    line(Guest("6.12"),    Virtiofsd,         RELAYED,              &[Packed]),

    line(VfioUser("6.12"), QemuStorageDaemon, BRIDGED,              &[Split]),
    line(VfioUser("6.12"), QemuStorageDaemon, RELAYED,              &[Packed]),
    line(VfioUser("6.12"), Passt,             BRIDGED,              &[Split]),
    line(VfioUser("6.12"), Testpmd,           BRIDGED,              &[Packed]),
    line(VfioUser("6.12"), Virtiofsd,         BRIDGED,              &[Split]),
    line(VfioUser("6.12"), Virtiofsd,         RELAYED,              &[Packed]),
    line(VfioUser("6.12"), VhostDeviceRng,    BRIDGED,              &[Split]),
    line(VfioUser("6.12"), OwnDisk,           BRIDGED,              BOTH),
    line(VfioUser("6.12"), OwnEcho,           BRIDGED,              BOTH),
    line(VfioUser("6.12"), OwnEntropy,        BRIDGED,              &[Split]),
    line(Unshared("6.12"), OwnEntropy,        &[Remote],            &[Split]),
    line(Unshared("6.12"), OwnDisk,           &[Remote],            &[Split]),

    line(VfioUser("6.12"), OwnConsole,        BRIDGED,              BOTH),
    line(VfioUser("6.12"), OwnPorts,          &[Pass],              &[Split]),
    line(VfioUser("6.12"), OwnPorts,          RELAYED,              &[Packed]),
    line(VfioUser("6.12"), OwnPty,            &[Pass],              &[Split]),
    line(VfioUser("6.12"), OwnTerminal,       &[Copy],              &[Split]),
    line(Guest("6.12"),    OwnPorts,          &[Copy],              &[Packed]),
    line(Guest("6.12"),    OwnTerminal,       &[Pass],              &[Split]),
    line(Uml,              OwnConsole,        BRIDGED,              &[Split]),
    line(Uml,              OwnPorts,          &[Translate],         &[Split]),

    line(Uml,              QemuStorageDaemon, BRIDGED,              &[Split]),
    line(Uml,              OwnDisk,           BRIDGED,              &[Split]),
    line(Uml,              Passt,             BRIDGED,              &[Split]),
    line(Uml,              OwnEcho,           BRIDGED,              &[Split]),
    line(Uml,              Virtiofsd,         BRIDGED,              &[Split]),
    line(VirtioUser,       Testpmd,           BRIDGED,              BOTH),
    line(VirtioUser,       OwnEcho,           BRIDGED,              BOTH),
    line(Blkio,            QemuStorageDaemon, BRIDGED,              &[Split]),
    line(Blkio,            OwnDisk,           BRIDGED,              &[Split]),
    line(QemuImg,          QemuStorageDaemon, BRIDGED,              &[Split]),
    line(QemuImg,          OwnDisk,           BRIDGED,              &[Split]),

    line(Guest("7.2"),     Passt,             &[Translate],         &[Packed]),
    line(Guest("7.2"),     Virtiofsd,         &[Pass],              &[Split]),
    line(VfioUser("7.2"),  QemuStorageDaemon, &[Translate],         &[Packed]),
    line(VfioUser("7.2"),  Testpmd,           &[Pass],              &[Packed]),
    line(VfioUser("7.2"),  Passt,             &[Copy],              &[Split]),
    line(VfioUser("7.2"),  VhostDeviceRng,    &[Translate],         &[Split]),
    line(VfioUser("7.2"),  Virtiofsd,         &[Copy],              &[Packed]),
    line(VfioUser("7.2"),  OwnPorts,          &[Copy],              &[Split]),
    line(VfioUser("7.2"),  OwnTerminal,       &[Translate],         &[Packed]),
    line(VfioUser("arm64"), OwnDisk,          &[Copy],              &[Packed]),
    line(VfioUser("arm64"), OwnEcho,          &[Pass],              &[Split]),

    line(Guest("6.12"),    QemuStorageDaemon, BRIDGED,              &[Split]).with(TwoQueues),
    line(Guest("6.12"),    OwnDisk,           &[Copy],              &[Packed]).with(TwoQueues),
    line(Guest("6.12"),    Testpmd,           &[Pass],              &[Split]).with(TwoQueues),
    line(Guest("6.12"),    Testpmd,           &[Translate],         &[Packed]).with(TwoQueues),
    line(VfioUser("6.12"), QemuStorageDaemon, &[Copy],              &[Split]).with(TwoQueues),
    line(VfioUser("6.12"), OwnDisk,           &[Translate],         &[Packed]).with(TwoQueues),
    line(VfioUser("6.12"), OwnTap,            &[Pass],              &[Split]).with(TwoQueues),
    line(VfioUser("6.12"), OwnTap,            &[Copy],              &[Packed]).with(TwoQueues),
    line(Guest("6.12"),    OwnTap,            &[Translate],         &[Split]),
    line(Unshared("6.12"), OwnDisk,           &[Remote],            &[Split]).with(Indirect),
    line(VfioUser("6.12"), QemuStorageDaemon, &[Auto, Copy],        &[Split]).with(IommuBriefly),
    line(VfioUser("6.12"), OwnDisk,           &[Pass],              &[Split]).with(IommuBriefly),
    line(Guest("6.12"),    QemuStorageDaemon, &[Auto],              &[Split]).with(IommuBriefly),
    line(Guest("6.12"),    Testpmd,           &[Auto],              &[Packed]).with(IommuBriefly),
    line(VirtioUser,       Testpmd,           &[Translate],         BOTH).with(TwoQueues),
    line(VirtioUser,       Testpmd,           &[Copy],              BOTH).with(OutOfOrder),
    line(VirtioUser,       Testpmd,           RELAYED,              BOTH).with(Converted),

    line(Guest("6.12"),    QemuStorageDaemon, BRIDGED,              &[Split]).when(DriverReturns),
    line(Guest("6.12"),    Testpmd,           &[Copy],              &[Split]).when(DriverReturns),
    line(Guest("6.12"),    Passt,             &[Translate],         &[Split]).when(DriverReturns),
    line(VfioUser("6.12"), Passt,             &[Copy],              &[Packed]).when(DriverReturns),
    line(VfioUser("6.12"), QemuStorageDaemon, &[Copy],              &[Split]).when(DriverReturns),
    line(Guest("6.12"),    QemuStorageDaemon, RELAYED,              &[Split]).when(DeviceRestarts),
    line(Guest("6.12"),    QemuStorageDaemon, RELAYED,              &[Packed]).when(DeviceRestarts),
    line(Guest("6.12"),    Testpmd,           RELAYED,              &[Split]).when(DeviceRestarts),
    line(Guest("6.12"),    EchoDaemon,        &[Copy],              &[Packed]).when(DeviceRestarts),
    line(Guest("6.12"),    Passt,             &[Translate],         &[Packed]).when(DeviceRestarts),
    line(VfioUser("6.12"), QemuStorageDaemon, RELAYED,              BOTH).when(DeviceRestarts),
    line(VfioUser("6.12"), Testpmd,           RELAYED,              &[Split]).when(DeviceRestarts),
    line(VfioUser("6.12"), DiskDaemon,        RELAYED,              &[Split]).when(DeviceRestarts),
    line(VfioUser("6.12"), Passt,             &[Copy],              &[Split]).when(DeviceRestarts),
    line(Uml,              Passt,             RELAYED,              &[Split]).when(DeviceRestarts),
    line(VirtioUser,       Testpmd,           RELAYED,              &[Split]).when(DeviceRestarts),
    line(QemuImg,          QemuStorageDaemon, RELAYED,              &[Split]).when(DeviceRestarts),
    line(Guest("6.12"),    QemuStorageDaemon, RELAYED,              &[Split]).when(BridgeRestarts),
    line(Guest("6.12"),    OwnDisk,           BRIDGED,              &[Split]).when(BridgeRestarts),
    line(Guest("6.12"),    OwnEcho,           BRIDGED,              &[Split]).when(BridgeRestarts),
    line(Guest("6.12"),    Testpmd,           RELAYED,              &[Split]).when(BridgeRestarts),
    line(Guest("6.12"),    Testpmd,           RELAYED,              &[Split]).when(Migrates),
    line(Guest("6.12"),    QemuStorageDaemon, RELAYED,              &[Split]).when(Migrates),
    line(Guest("6.12"),    OwnDisk,           BRIDGED,              &[Split]).when(Migrates),
    line(Guest("6.12"),    OwnEcho,           BRIDGED,              &[Split]).when(Migrates),
    line(Guest("6.12"),    OwnDisk,           &[Pass, Copy],        &[Split]).when(Grows),
    line(VfioUser("6.12"), OwnDisk,           &[Translate],         &[Split]).when(Grows),
    line(Guest("6.12"),    QemuStorageDaemon, &[Copy],              &[Split]).when(FirmwareBoots),
    line(Guest("6.12"),    Passt,             &[Copy],              &[Split]).when(FirmwareBoots),
    line(VfioUser("6.12"), OwnDisk,           &[Copy],              &[Split]).when(FirmwareBoots),
    line(VfioUser("6.12"), Passt,             &[Copy],              &[Split]).when(FirmwareBoots),
];

/// Rows of the long run only: the daemons without viaduct, and what is nearly a row above.
#[rustfmt::skip]
pub const SELDOM: &[Line] = &[
    line(Guest("7.2"),     QemuStorageDaemon, &[Direct],            &[Split]),
    line(Guest("6.12"),    Passt,             &[Direct],            &[Split]),
    line(Guest("6.12"),    Testpmd,           &[Direct],            BOTH),
    line(Guest("6.12"),    Virtiofsd,         &[Direct],            &[Split]),
    line(Guest("6.12"),    VhostDeviceRng,    &[Direct],            &[Split]),
    line(VfioUser("6.12"), Passt,             RELAYED,              &[Packed]),
    line(VfioUser("6.12"), Testpmd,           BRIDGED,              &[Split]),
    line(VfioUser("6.12"), VhostDeviceRng,    RELAYED,              &[Packed]),
    line(VfioUser("6.12"), OwnEntropy,        BRIDGED,              &[Packed]),
    line(Guest("6.12"),    OwnConsole,        BRIDGED,              &[Split]),
    line(Uml,              QemuStorageDaemon, &[Direct],            &[Split]),
    line(VirtioUser,       Testpmd,           &[Direct],            BOTH),
    line(Blkio,            QemuStorageDaemon, &[Direct],            &[Split]),
    line(QemuImg,          QemuStorageDaemon, &[Direct],            &[Split]),
    line(Guest("6.12"),    Testpmd,           &[Direct, Copy],      &[Split]).with(TwoQueues),
    line(VfioUser("6.12"), QemuStorageDaemon, &[Auto],              &[Split]).with(Iommu),
    line(VfioUser("6.12"), Testpmd,           &[Auto, Copy],        &[Packed]).with(IommuBriefly),
    line(VfioUser("6.12"), OwnDisk,           RELAYED,              &[Packed]).with(IommuBriefly),
    line(VfioUser("6.12"), OwnEcho,           BRIDGED,              &[Split]).with(IommuBriefly),
    line(Guest("6.12"),    QemuStorageDaemon, &[Auto],              &[Split]).with(Iommu),
    line(Guest("6.12"),    QemuStorageDaemon, &[Copy],              BOTH).with(IommuBriefly),
    line(Guest("6.12"),    QemuStorageDaemon, &[Translate],         &[Packed]).with(IommuBriefly),
    line(Guest("6.12"),    Testpmd,           &[Direct, Copy],      BOTH).with(IommuBriefly),
    line(Guest("6.12"),    Testpmd,           &[Auto],              &[Split]).with(IommuBriefly),
    line(Guest("6.12"),    OwnDisk,           BRIDGED,              BOTH).with(IommuBriefly),
    line(Guest("6.12"),    OwnEcho,           BRIDGED,              BOTH).with(IommuBriefly),
    line(VirtioUser,       Testpmd,           &[Direct, Pass, Copy], BOTH).with(TwoQueues),
    line(VirtioUser,       Testpmd,           &[Pass, Translate],   BOTH).with(OutOfOrder),
    line(Guest("6.12"),    QemuStorageDaemon, &[Direct],            &[Split]).when(DriverReturns),
    line(Guest("6.12"),    Testpmd,           &[Direct, Pass],      &[Split]).when(DriverReturns),
    line(Guest("6.12"),    Testpmd,           &[Translate],         &[Split]).when(DriverReturns),
    line(Guest("6.12"),    Passt,             &[Direct, Pass, Copy], &[Split]).when(DriverReturns),
    line(VfioUser("6.12"), Passt,             &[Pass, Translate],   &[Split]).when(DriverReturns),
    line(Guest("6.12"),    QemuStorageDaemon, &[Direct],            &[Split]).when(DeviceRestarts),
    line(Guest("6.12"),    Testpmd,           &[Direct],            &[Split]).when(DeviceRestarts),
    line(Guest("6.12"),    Testpmd,           RELAYED,              &[Packed]).when(DeviceRestarts),
    line(Guest("6.12"),    DiskDaemon,        RESTARTABLE,          &[Split]).when(DeviceRestarts),
    line(Guest("6.12"),    EchoDaemon,        &[Direct],            &[Split]).when(DeviceRestarts),
    line(VfioUser("6.12"), Testpmd,           RELAYED,              &[Packed]).when(DeviceRestarts),
    line(VfioUser("6.12"), DiskDaemon,        RELAYED,              &[Packed]).when(DeviceRestarts),
    line(VfioUser("6.12"), EchoDaemon,        RELAYED,              BOTH).when(DeviceRestarts),
    line(Uml,              EchoDaemon,        RELAYED,              &[Split]).when(DeviceRestarts),
    line(VirtioUser,       Testpmd,           RELAYED,              &[Packed]).when(DeviceRestarts),
    line(VirtioUser,       EchoDaemon,        RELAYED,              BOTH).when(DeviceRestarts),
    line(QemuImg,          DiskDaemon,        RELAYED,              &[Split]).when(DeviceRestarts),
    line(Guest("6.12"),    OwnDisk,           BRIDGED,              &[Packed]).when(BridgeRestarts),
    line(Guest("6.12"),    Testpmd,           &[Direct, Pass],      &[Split]).when(Migrates),
    line(Guest("6.12"),    OwnDisk,           BRIDGED,              &[Packed]).when(Migrates),
    line(Guest("6.12"),    OwnEcho,           BRIDGED,              &[Packed]).when(Migrates),
    line(Guest("6.12"),    QemuStorageDaemon, &[Direct],            &[Split]).when(FirmwareBoots),
    line(Guest("6.12"),    Passt,             &[Direct],            &[Split]).when(FirmwareBoots),
];
