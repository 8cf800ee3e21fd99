/// The device status field (VIRTIO 1.4, 2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status(pub u8);

impl Status {
    /// Reset: no bits.
    pub const RESET: Self = Self(0);
    /// The driver has noticed the device.
    pub const ACKNOWLEDGE: Self = Self(1);
    /// The driver knows how to drive it.
    pub const DRIVER: Self = Self(2);
    /// The driver is ready.
    pub const DRIVER_OK: Self = Self(4);
    /// Feature negotiation is complete.
    pub const FEATURES_OK: Self = Self(8);
    /// The device is suspended.
    pub const SUSPEND: Self = Self(16);
    /// The device needs a reset to go on.
    pub const NEEDS_RESET: Self = Self(64);
    /// The driver has given up.
    pub const FAILED: Self = Self(128);

    /// Whether all bits of `other` are set.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// With the bits of `other` added.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Without the bits of `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// What a write to the status field asks the device to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Nothing beyond showing the new bits.
    None,
    /// Reset everything.
    Reset,
    /// Accept the features, or leave FEATURES_OK clear.
    AcceptFeatures,
    /// Start the queues.
    Start,
    /// The write broke the rules and is ignored.
    Ignored,
}

/// The device's side of the status field: which writes count, and what they mean.
///
/// Whatever a driver writes, the order RESET, DRIVER, FEATURES_OK, DRIVER_OK is kept: a later step
/// without the earlier one is ignored, and bits are only ever cleared by a reset.
#[derive(Clone, Copy, Debug, Default)]
pub struct StatusMachine {
    status: Status,
    /// Legacy drivers have no FEATURES_OK step.
    legacy: bool,
}

impl StatusMachine {
    /// A device after reset. `legacy` if the driver uses the legacy interface, which goes from
    /// DRIVER straight to DRIVER_OK.
    #[must_use]
    pub fn new(legacy: bool) -> Self {
        Self { status: Status::RESET, legacy }
    }

    /// The field as the driver reads it.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// The driver uses the legacy interface from now on.
    pub fn set_legacy(&mut self, legacy: bool) {
        self.legacy = legacy;
    }

    /// The driver writes `value`. For [`Transition::AcceptFeatures`] and [`Transition::Start`] the
    /// caller reports failure with [`StatusMachine::refuse_features`] or
    /// [`StatusMachine::needs_reset`].
    pub fn write(&mut self, value: Status) -> Transition {
        if value == Status::RESET {
            self.status = Status::RESET;
            return Transition::Reset;
        }
        let kept = self.status.without(Status::NEEDS_RESET);
        if !value.has(kept) || self.status.has(Status::FAILED) {
            return Transition::Ignored;
        }
        let added = value.without(self.status).without(Status::NEEDS_RESET);
        if added.has(Status::FEATURES_OK) {
            // Too late for a legacy driver that runs already.
            if value.has(Status::DRIVER_OK) || !value.has(Status::DRIVER) {
                return Transition::Ignored;
            }
            self.status = self.status.with(added);
            return Transition::AcceptFeatures;
        }
        if added.has(Status::DRIVER_OK) {
            let negotiated = self.legacy || self.status.has(Status::FEATURES_OK);
            if !negotiated || !value.has(Status::DRIVER) {
                return Transition::Ignored;
            }
            self.status = self.status.with(added);
            return Transition::Start;
        }
        self.status = self.status.with(added);
        Transition::None
    }

    /// The features were not acceptable: FEATURES_OK reads as clear.
    pub fn refuse_features(&mut self) {
        self.status = self.status.without(Status::FEATURES_OK);
    }

    /// The device can't go on. Returns whether the driver must be told by a config change interrupt
    /// (VIRTIO 1.4, 2.1.2).
    pub fn needs_reset(&mut self) -> bool {
        self.status = self.status.with(Status::NEEDS_RESET);
        self.status.has(Status::DRIVER_OK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_way_up() {
        let mut machine = StatusMachine::new(false);
        assert_eq!(machine.write(Status(1)), Transition::None);
        assert_eq!(machine.write(Status(3)), Transition::None);
        assert_eq!(machine.write(Status(11)), Transition::AcceptFeatures);
        assert_eq!(machine.write(Status(15)), Transition::Start);
        assert_eq!(machine.status(), Status(15));
        assert_eq!(machine.write(Status(0)), Transition::Reset);
        assert_eq!(machine.status(), Status(0));
    }

    #[test]
    fn steps_out_of_order_are_ignored() {
        let mut machine = StatusMachine::new(false);
        assert_eq!(machine.write(Status(4)), Transition::Ignored);
        assert_eq!(machine.write(Status(8)), Transition::Ignored);
        machine.write(Status(3));
        assert_eq!(machine.write(Status(7)), Transition::Ignored, "DRIVER_OK without FEATURES_OK");
        assert_eq!(machine.write(Status(15)), Transition::Ignored, "both in one write");
        machine.write(Status(11));
        assert_eq!(machine.write(Status(3)), Transition::Ignored, "clearing a bit");
        machine.refuse_features();
        assert_eq!(machine.write(Status(7)), Transition::Ignored);
        assert_eq!(machine.write(Status(11)), Transition::AcceptFeatures, "another try");
        machine.write(Status(0x8b));
        assert_eq!(machine.write(Status(0x8f)), Transition::Ignored, "FAILED is final");
    }

    #[test]
    fn a_legacy_driver_skips_features_ok() {
        let mut machine = StatusMachine::new(true);
        machine.write(Status(3));
        assert_eq!(machine.write(Status(7)), Transition::Start);
        assert_eq!(machine.write(Status(15)), Transition::Ignored, "it runs already");
        assert_eq!(machine.status(), Status(7));
    }

    #[test]
    fn needs_reset_stays_until_reset() {
        let mut machine = StatusMachine::new(false);
        machine.write(Status(3));
        assert!(!machine.needs_reset());
        machine.write(Status(11));
        assert!(machine.status().has(Status::NEEDS_RESET));
        machine.write(Status(0));
        assert_eq!(machine.status(), Status::RESET);
    }
}
