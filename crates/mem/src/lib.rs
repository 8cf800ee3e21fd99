//! Shared memory: mappings, address-space snapshots, tables of atomics, spans of bytes.


