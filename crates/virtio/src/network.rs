use crate::DeviceError;

/// What a network device can be told outside its queues, by driver's sides that speak vhost-user.
pub trait NetworkControl {
    /// Whether [`NetworkControl::announce`] is done.
    fn can_announce(&self) -> bool;

    /// Whether [`NetworkControl::set_mtu`] is done.
    fn can_set_mtu(&self) -> bool;

    /// The station with this address is now behind this device: tells the network, which may have
    /// seen it elsewhere (after a migration of a guest that can't do so itself).
    ///
    /// # Errors
    /// The device can't, or is away.
    fn announce(&mut self, mac: [u8; 6]) -> Result<(), DeviceError>;

    /// The largest packet in bytes that the driver has been told of.
    ///
    /// # Errors
    /// The device can't work with it, or is away.
    fn set_mtu(&mut self, mtu: u16) -> Result<(), DeviceError>;
}
