//! What is connected to what. Each line is a driver side, a device side, the ways between them and
//! the ring formats; its rows are all combinations.

use crate::driver::Driver::*;
use crate::peer::Peer::*;
use crate::row::Ring::{self, Packed, Split};
use crate::row::Setting::{Converted, Iommu, OutOfOrder, TwoQueues};
use crate::row::Way::{self, Copy, Direct, Pass, Remote, Translate};
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

/// The table.
#[rustfmt::skip]
pub const TABLE: &[Line] = &[
    // driver side         device side         ways                   rings
    line(Guest("6.12"),    QemuStorageDaemon, FROM_DIRECT,          &[Split]),
    line(Guest("7.2"),     QemuStorageDaemon, &[Direct, Copy],      &[Split]),
    line(Guest("6.12"),    OwnDisk,           BRIDGED,              BOTH),
    line(Guest("6.12"),    Passt,             FROM_DIRECT,          &[Split]),
    line(Guest("6.12"),    Testpmd,           FROM_DIRECT,          BOTH),
    line(Guest("6.12"),    OwnEcho,           BRIDGED,              BOTH),
    line(Guest("6.12"),    Virtiofsd,         FROM_DIRECT,          &[Split]),
    line(Guest("6.12"),    VhostDeviceRng,    FROM_DIRECT,          &[Split]),

    line(Guest("6.12"),    QemuStorageDaemon, RELAYED,              &[Packed]),
    line(Guest("6.12"),    Passt,             RELAYED,              &[Packed]),
    line(Guest("6.12"),    Virtiofsd,         RELAYED,              &[Packed]),

    line(VfioUser("6.12"), QemuStorageDaemon, BRIDGED,              &[Split]),
    line(VfioUser("6.12"), QemuStorageDaemon, RELAYED,              &[Packed]),
    line(VfioUser("6.12"), Passt,             BRIDGED,              &[Split]),
    line(VfioUser("6.12"), Passt,             RELAYED,              &[Packed]),
    line(VfioUser("6.12"), Testpmd,           BRIDGED,              BOTH),
    line(VfioUser("6.12"), Virtiofsd,         BRIDGED,              &[Split]),
    line(VfioUser("6.12"), Virtiofsd,         RELAYED,              &[Packed]),
    line(VfioUser("6.12"), VhostDeviceRng,    BRIDGED,              &[Split]),
    line(VfioUser("6.12"), VhostDeviceRng,    RELAYED,              &[Packed]),
    line(VfioUser("6.12"), OwnDisk,           BRIDGED,              BOTH),
    line(VfioUser("6.12"), OwnEcho,           BRIDGED,              BOTH),
    line(VfioUser("6.12"), OwnEntropy,        BRIDGED,              BOTH),
    line(Unshared("6.12"), OwnEntropy,        &[Remote],            &[Split]),
    line(Unshared("6.12"), OwnDisk,           &[Remote],            &[Split]),

    line(VfioUser("6.12"), OwnConsole,        BRIDGED,              BOTH),
    line(VfioUser("6.12"), OwnPorts,          &[Pass],              &[Split]),
    line(VfioUser("6.12"), OwnPorts,          RELAYED,              &[Packed]),
    line(VfioUser("6.12"), OwnPty,            &[Pass],              &[Split]),
    line(VfioUser("6.12"), OwnTerminal,       &[Copy],              &[Split]),
    line(Guest("6.12"),    OwnConsole,        BRIDGED,              &[Split]),
    line(Guest("6.12"),    OwnPorts,          &[Copy],              &[Packed]),
    line(Guest("6.12"),    OwnTerminal,       &[Pass],              &[Split]),
    line(Uml,              OwnConsole,        BRIDGED,              &[Split]),
    line(Uml,              OwnPorts,          &[Translate],         &[Split]),

    line(Uml,              QemuStorageDaemon, FROM_DIRECT,          &[Split]),
    line(Uml,              OwnDisk,           BRIDGED,              &[Split]),
    line(Uml,              Passt,             BRIDGED,              &[Split]),
    line(Uml,              OwnEcho,           BRIDGED,              &[Split]),
    line(Uml,              Virtiofsd,         BRIDGED,              &[Split]),
    line(VirtioUser,       Testpmd,           FROM_DIRECT,          BOTH),
    line(VirtioUser,       OwnEcho,           BRIDGED,              BOTH),
    line(Blkio,            QemuStorageDaemon, FROM_DIRECT,          &[Split]),
    line(Blkio,            OwnDisk,           BRIDGED,              &[Split]),
    line(QemuImg,          QemuStorageDaemon, FROM_DIRECT,          &[Split]),
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

    line(Guest("6.12"),    QemuStorageDaemon, BRIDGED,              &[Split]).with(TwoQueues),
    line(Guest("6.12"),    OwnDisk,           &[Copy],              &[Packed]).with(TwoQueues),
    line(Guest("6.12"),    Testpmd,           &[Direct, Pass, Copy], &[Split]).with(TwoQueues),
    line(Guest("6.12"),    Testpmd,           &[Translate],         &[Packed]).with(TwoQueues),
    line(VfioUser("6.12"), QemuStorageDaemon, &[Copy],              &[Split]).with(TwoQueues),
    line(VfioUser("6.12"), OwnDisk,           &[Translate],         &[Packed]).with(TwoQueues),
    line(VfioUser("6.12"), OwnTap,            &[Pass],              &[Split]).with(TwoQueues),
    line(VfioUser("6.12"), OwnTap,            &[Copy],              &[Packed]).with(TwoQueues),
    line(Guest("6.12"),    OwnTap,            &[Translate],         &[Split]),
    line(VfioUser("6.12"), QemuStorageDaemon, &[Copy],              &[Split]).with(Iommu),
    line(VfioUser("6.12"), Testpmd,           &[Copy],              &[Packed]).with(Iommu),
    line(VirtioUser,       Testpmd,           FROM_DIRECT,          BOTH).with(TwoQueues),
    line(VirtioUser,       Testpmd,           BRIDGED,              BOTH).with(OutOfOrder),
    line(VirtioUser,       Testpmd,           RELAYED,              BOTH).with(Converted),

    line(Guest("6.12"),    QemuStorageDaemon, FROM_DIRECT,          &[Split]).when(DriverReturns),
    line(Guest("6.12"),    Testpmd,           FROM_DIRECT,          &[Split]).when(DriverReturns),
    line(Guest("6.12"),    Passt,             &[Direct],            &[Split]).when(DriverReturns),
    line(VfioUser("6.12"), QemuStorageDaemon, &[Copy],              &[Split]).when(DriverReturns),
    line(Guest("6.12"),    QemuStorageDaemon, RESTARTABLE,          &[Split]).when(DeviceRestarts),
    line(Guest("6.12"),    QemuStorageDaemon, RELAYED,              &[Packed]).when(DeviceRestarts),
    line(Guest("6.12"),    Testpmd,           RESTARTABLE,          &[Split]).when(DeviceRestarts),
    line(Guest("6.12"),    Testpmd,           RELAYED,              &[Packed]).when(DeviceRestarts),
    line(Guest("6.12"),    DiskDaemon,        RESTARTABLE,          &[Split]).when(DeviceRestarts),
    line(Guest("6.12"),    EchoDaemon,        &[Direct],            &[Split]).when(DeviceRestarts),
    line(Guest("6.12"),    EchoDaemon,        &[Copy],              &[Packed]).when(DeviceRestarts),
    line(Guest("6.12"),    Passt,             &[Translate],         &[Packed]).when(DeviceRestarts),
    line(VfioUser("6.12"), QemuStorageDaemon, RELAYED,              BOTH).when(DeviceRestarts),
    line(VfioUser("6.12"), Testpmd,           RELAYED,              BOTH).when(DeviceRestarts),
    line(VfioUser("6.12"), DiskDaemon,        RELAYED,              BOTH).when(DeviceRestarts),
    line(VfioUser("6.12"), EchoDaemon,        RELAYED,              BOTH).when(DeviceRestarts),
    line(VfioUser("6.12"), Passt,             &[Copy],              &[Split]).when(DeviceRestarts),
    line(Uml,              Passt,             RELAYED,              &[Split]).when(DeviceRestarts),
    line(Uml,              EchoDaemon,        RELAYED,              &[Split]).when(DeviceRestarts),
    line(VirtioUser,       Testpmd,           RELAYED,              BOTH).when(DeviceRestarts),
    line(VirtioUser,       EchoDaemon,        RELAYED,              BOTH).when(DeviceRestarts),
    line(QemuImg,          QemuStorageDaemon, RELAYED,              &[Split]).when(DeviceRestarts),
    line(QemuImg,          DiskDaemon,        RELAYED,              &[Split]).when(DeviceRestarts),
    line(Guest("6.12"),    QemuStorageDaemon, RELAYED,              &[Split]).when(BridgeRestarts),
    line(Guest("6.12"),    OwnDisk,           BRIDGED,              BOTH).when(BridgeRestarts),
    line(Guest("6.12"),    OwnEcho,           BRIDGED,              &[Split]).when(BridgeRestarts),
    line(Guest("6.12"),    Testpmd,           RELAYED,              &[Split]).when(BridgeRestarts),
    line(Guest("6.12"),    Testpmd,           FROM_DIRECT,          &[Split]).when(Migrates),
    line(Guest("6.12"),    QemuStorageDaemon, RELAYED,              &[Split]).when(Migrates),
    line(Guest("6.12"),    OwnDisk,           BRIDGED,              BOTH).when(Migrates),
    line(Guest("6.12"),    OwnEcho,           BRIDGED,              BOTH).when(Migrates),
    line(Guest("6.12"),    OwnDisk,           &[Pass, Copy],        &[Split]).when(Grows),
    line(VfioUser("6.12"), OwnDisk,           &[Translate],         &[Split]).when(Grows),
    line(Guest("6.12"),    QemuStorageDaemon, &[Direct, Copy],      &[Split]).when(FirmwareBoots),
    line(Guest("6.12"),    Passt,             &[Direct, Copy],      &[Split]).when(FirmwareBoots),
    line(VfioUser("6.12"), OwnDisk,           &[Copy],              &[Split]).when(FirmwareBoots),
    line(VfioUser("6.12"), Passt,             &[Copy],              &[Split]).when(FirmwareBoots),
];
