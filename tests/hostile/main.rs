//! Hostile guests against the real monitor: after each attack the host must be as it was.
//!
//! The guest (tests/hostile/guest) resets its machine when an attack is through, which ends the VM
//! with code 125 and one sentence. While it runs, the memory and descriptors of monitor and file
//! worker are watched; afterwards the host's files are compared, and a neighbour, a container that
//! runs all the while, is asked for a sign of life.

mod arena;
mod limits;
mod tap;

use arena::{Arena, End};

/// One test for each attack: `name` or `name => end`.
macro_rules! attacks {
    ($($name:ident $(=> $end:expr)?),* $(,)?) => {
        $(#[test]
        fn $name() {
            #[allow(unused_mut, unused_assignments)]
            let mut end = End::Through;
            $(end = $end;)?
            Arena::new().attack(stringify!($name), end);
        })*
        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

attacks! {
    // transport.rs
    mmio_read_every_offset_and_width,
    mmio_write_every_offset_and_width,
    mmio_where_nothing_is,
    mmio_across_windows,
    mmio_random_storm,
    pio_read_every_port,
    pio_write_every_port,
    status_without_features,
    status_bits_at_random,
    features_never_offered,
    features_after_driver_ok,
    queue_sizes_that_are_none,
    queue_addresses_out_of_memory,
    queue_moved_after_driver_ok,
    queue_selected_out_of_range,
    queue_ready_twice_and_never,
    notify_storm,
    notify_of_no_queue,
    config_written_everywhere,
    reset_storm,
    interrupts_acknowledged_unasked,
    // queue.rs
    chain_that_is_a_loop,
    chain_that_is_a_long_loop,
    chain_longer_than_the_queue,
    buffers_of_no_length,
    buffers_of_4_gib,
    buffers_out_of_memory,
    buffers_across_the_end_of_memory,
    buffers_that_wrap_around,
    buffers_over_the_rings,
    buffers_over_device_registers,
    heads_out_of_range,
    next_out_of_range,
    avail_index_jumps,
    head_offered_many_times,
    readable_after_writable,
    indirect_in_indirect,
    indirect_never_negotiated,
    indirect_tables_of_odd_length,
    indirect_table_out_of_memory,
    indirect_with_next,
    event_index_nonsense,
    rings_on_one_another,
    rings_at_the_end_of_memory,
    rings_of_noise,
    entropy_gluttony,
    // race.rs
    race_descriptor_addresses,
    race_descriptor_chains,
    race_indirect_tables,
    race_ring_indexes,
    race_fuse_headers,
    race_vsock_headers,
    race_status,
    // cpu.rs
    msr_read_sweep,
    msr_write_sweep,
    cpuid_sweep,
    control_registers,
    hypercalls,
    kvm_clock_out_of_memory,
    lapic_every_register,
    io_apic_every_register,
    pic_and_pit_reprogrammed,
    timer_storm,
    interrupts_to_oneself,
    nmi_init_and_sipi_storm,
    all_memory_dirtied,
    undefined_instructions,
    executing_device_registers => End::Dead,
    stack_in_device_registers,
    triple_fault => End::Dead,
    page_tables_of_noise => End::Dead,
    halt_with_interrupts_off => End::Alive,
    endless_loop => End::Alive,
    reset_by_keyboard_controller,
    serial_flood,
    boot_mark_storm,
    // fuse_protocol.rs and fuse_files.rs
    fuse_every_opcode_with_nothing,
    fuse_every_opcode_with_noise,
    fuse_headers_that_lie,
    fuse_no_room_for_a_reply => End::Dead,
    fuse_requests_before_init,
    fuse_bogus_nodes,
    fuse_bogus_handles,
    fuse_forget_underflow,
    fuse_batch_forget_lies,
    fuse_lookup_flood,
    fuse_open_flood,
    fuse_inode_flood,
    fuse_readdir_at_any_offset,
    fuse_reads_of_any_size,
    fuse_writes_that_lie,
    fuse_device_nodes,
    fuse_open_of_what_is_no_file,
    fuse_symlinks_out,
    fuse_write_to_a_read_only_share,
    fuse_link_and_rename_across_shares,
    fuse_owner_and_mode_nonsense,
    fuse_fallocate_everything,
    fuse_copy_onto_itself,
    fuse_xattrs_of_other_kinds,
    fuse_pipelined_and_reset,
    fuse_init_again_and_again,
    // fuse_window.rs
    window_mappings_of_nonsense,
    window_read_and_written_everywhere,
    window_storm,
    window_as_buffers,
    // fuse_names.rs
    names_in_lookup,
    names_in_mkdir,
    names_in_mknod,
    names_in_create,
    names_in_unlink_and_rmdir,
    names_in_symlink,
    names_in_link,
    names_in_rename,
    names_without_an_end,
    names_of_xattrs,
    // vsock.rs
    vsock_packets_from_other_cids,
    vsock_packets_to_other_cids,
    vsock_every_op_and_type,
    vsock_lengths_that_lie,
    vsock_packets_cut_short,
    vsock_connection_flood,
    vsock_ports_all_over,
    vsock_data_without_a_connection,
    vsock_credit_lies,
    vsock_credit_request_storm,
    vsock_beyond_its_credit,
    vsock_half_closes,
    vsock_never_reads,
    vsock_responses_nobody_asked_for,
    vsock_event_queue_abuse,
    vsock_streams_taken_twice,
    vsock_stdout_flood,
    exit_report_too_short,
    exit_report_of_noise,
    exit_report_without_end,
    exit_report_faked => End::Exits(42),
}

#[test]
fn every_attack_of_the_guest_is_run() {
    let said = Arena::new().list();
    let names = [NAMES, limits::FLOODS].concat();
    let unknown: Vec<_> = said.iter().filter(|name| !names.contains(&name.as_str())).collect();
    let missing: Vec<_> = names.iter().filter(|name| !said.iter().any(|s| s == *name)).collect();
    assert!(unknown.is_empty() && missing.is_empty(), "{unknown:?} {missing:?}");
    assert!(said.len() >= 60);
}
