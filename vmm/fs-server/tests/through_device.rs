//! Device and server together: real file work by way of this machine's own FUSE, a mock driver, the
//! virtio-fs device and the server. Needs root and /dev/fuse.

mod support;

use support::{mounted_through_device, sh};

#[test]
fn files_of_all_sizes_arrive() {
    let mounted = mounted_through_device();
    sh(
        &mounted.guest,
        "for i in 0 1 4095 4096 131072 1048576 5000001; do head -c $i /dev/urandom > $i
         cp $i copy-$i; dd if=$i of=direct-$i bs=1M iflag=direct oflag=direct status=none; done",
    );
    let compare = "for i in 0 1 4095 4096 131072 1048576 5000001; do
                   [ $(stat -c %s $i) = $i ]; cmp $i copy-$i; cmp $i direct-$i; done";
    sh(&mounted.host, compare);
    sh(&mounted.guest, compare);
}

#[test]
fn several_work_at_once() {
    let mounted = mounted_through_device();
    sh(
        &mounted.guest,
        "for i in 1 2 3 4; do
           (head -c 4000000 /dev/urandom > f$i; sync -d f$i; cp f$i g$i
            mkdir d$i; for j in $(seq 100); do echo $j > d$i/$j; done; cp -r d$i e$i; rm -r d$i) &
         done; wait; for i in 1 2 3 4; do cmp f$i g$i; [ $(ls -l e$i | wc -l) = 101 ]; done",
    );
    sh(&mounted.host, "for i in 1 2 3 4; do cmp f$i g$i; [ $(cat e$i/100) = 100 ]; done");
}
