//! PCIe functions, config space, virtio-pci, and the vfio-user service.

#![forbid(unsafe_code)]
