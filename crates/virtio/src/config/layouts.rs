use super::config_layout;

config_layout! {
    /// Block device (VIRTIO 1.4, 5.2.4).
    BlkConfig, 96 {
        /// In sectors of 512 bytes.
        capacity: u64 = 0;
        /// Largest segment in bytes, with SIZE_MAX.
        size_max: u32 = 8;
        /// Most segments of a request, with SEG_MAX.
        seg_max: u32 = 12;
        /// Legacy geometry.
        cylinders: u16 = 16;
        /// Legacy geometry.
        heads: u8 = 18;
        /// Legacy geometry.
        sectors: u8 = 19;
        /// Logical block size in bytes, with BLK_SIZE.
        blk_size: u32 = 20;
        /// Physical block size as a power of two of logical blocks.
        physical_block_exp: u8 = 24;
        /// First aligned logical block.
        alignment_offset: u8 = 25;
        /// Smallest good I/O in logical blocks.
        min_io_size: u16 = 26;
        /// Best I/O in logical blocks.
        opt_io_size: u32 = 28;
        /// 1 for writeback cache, with CONFIG_WCE.
        writeback: u8 = 32;
        /// Number of request queues, with MQ.
        num_queues: u16 = 34;
        /// In sectors.
        max_discard_sectors: u32 = 36;
        /// Segments per discard request.
        max_discard_seg: u32 = 40;
        /// In sectors.
        discard_sector_alignment: u32 = 44;
        /// In sectors.
        max_write_zeroes_sectors: u32 = 48;
        /// Segments per write-zeroes request.
        max_write_zeroes_seg: u32 = 52;
        /// Whether write-zeroes may deallocate.
        write_zeroes_may_unmap: u8 = 56;
        /// In sectors.
        max_secure_erase_sectors: u32 = 60;
        /// Segments per secure-erase request.
        max_secure_erase_seg: u32 = 64;
        /// In sectors.
        secure_erase_sector_alignment: u32 = 68;
    }
}

config_layout! {
    /// Network device (VIRTIO 1.4, 5.1.4).
    NetConfig, 28 {
        /// Hardware address, with MAC.
        mac: [u8; 6] = 0;
        /// Bit 0: link up; bit 1: announce; with STATUS.
        status: u16 = 6;
        /// With MQ or RSS.
        max_virtqueue_pairs: u16 = 8;
        /// In bytes, with MTU.
        mtu: u16 = 10;
        /// In Mb/s, with SPEED_DUPLEX.
        speed: u32 = 12;
        /// 0 half, 1 full.
        duplex: u8 = 16;
        /// In bytes, with RSS.
        rss_max_key_size: u8 = 17;
        /// In entries, with RSS.
        rss_max_indirection_table_length: u16 = 18;
        /// Bitmap, with RSS or HASH_REPORT.
        supported_hash_types: u32 = 20;
        /// Bitmap, with HASH_TUNNEL.
        supported_tunnel_types: u32 = 24;
    }
}

config_layout! {
    /// Console (VIRTIO 1.4, 5.3.4).
    ConsoleConfig, 12 {
        /// Columns, with SIZE.
        cols: u16 = 0;
        /// Rows, with SIZE.
        rows: u16 = 2;
        /// With MULTIPORT.
        max_nr_ports: u32 = 4;
        /// Early output, with EMERG_WRITE.
        emerg_wr: u32 = 8;
    }
}

config_layout! {
    /// Traditional memory balloon (VIRTIO 1.4, 5.5.4).
    BalloonConfig, 16 {
        /// Pages the host wants.
        num_pages: u32 = 0;
        /// Pages the guest gave.
        actual: u32 = 4;
        /// Command id, with FREE_PAGE_HINT.
        free_page_hint_cmd_id: u32 = 8;
        /// With PAGE_POISON.
        poison_val: u32 = 12;
    }
}

config_layout! {
    /// SCSI host (VIRTIO 1.4, 5.6.4).
    ScsiConfig, 36 {
        /// Request queues.
        num_queues: u32 = 0;
        /// Most segments of a command.
        seg_max: u32 = 4;
        /// Largest transfer hint.
        max_sectors: u32 = 8;
        /// Commands per unit.
        cmd_per_lun: u32 = 12;
        /// Bytes of an event.
        event_info_size: u32 = 16;
        /// Bytes of sense data.
        sense_size: u32 = 20;
        /// Bytes of a command block.
        cdb_size: u32 = 24;
        /// Highest channel.
        max_channel: u16 = 28;
        /// Highest target.
        max_target: u16 = 30;
        /// Highest unit.
        max_lun: u32 = 32;
    }
}

config_layout! {
    /// Graphics (VIRTIO 1.4, 5.7.4).
    GpuConfig, 16 {
        /// Pending events.
        events_read: u32 = 0;
        /// Acknowledged events.
        events_clear: u32 = 4;
        /// Screens.
        num_scanouts: u32 = 8;
        /// Capability sets.
        num_capsets: u32 = 12;
    }
}

config_layout! {
    /// Socket device (VIRTIO 1.4, 5.10.4).
    VsockConfig, 8 {
        /// The guest's context id.
        guest_cid: u64 = 0;
    }
}

config_layout! {
    /// File system (VIRTIO 1.4, 5.11.4).
    FsConfig, 44 {
        /// The name to mount, padded with zeros.
        tag: [u8; 36] = 0;
        /// Request queues.
        num_request_queues: u32 = 36;
        /// Bytes of a notification, with NOTIFICATION.
        notify_buf_size: u32 = 40;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_has_them() {
        let config = BlkConfig {
            capacity: 0x0102,
            num_queues: 4,
            write_zeroes_may_unmap: 1,
            ..Default::default()
        };
        let bytes = config.encode();
        assert_eq!(&bytes[..8], &[2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[34], 4);
        assert_eq!(bytes[56], 1);
        assert_eq!(BlkConfig::decode(&bytes), config);
        assert_eq!(BlkConfig::decode(&bytes[..8]).num_queues, 0, "a short config reads as zeros");
    }

    #[test]
    fn a_config_is_shown_by_name() {
        let mut config = NetConfig { mtu: 1500, ..Default::default() };
        config.mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
        let fields = super::super::show(crate::DeviceType::NET, &config.encode()).unwrap();
        assert!(fields.contains(&("mac", "52:54:00:12:34:56".into())));
        assert!(fields.contains(&("mtu", "1500".into())));
        let mut fs = FsConfig::default();
        fs.tag[..4].copy_from_slice(b"myfs");
        assert_eq!(fs.fields()[0], ("tag", "myfs".into()));
    }
}
