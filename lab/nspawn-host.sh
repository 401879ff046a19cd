#!/bin/sh
# Switches one host on: nspawn-host.sh DIRECTORY IMAGE NETNS NAME GROUP...
#
# DIRECTORY keeps the host: disk/ (what differs from IMAGE), seed/ (files of a fresh disk), console.log.
# GROUP... are the host's empty control groups, one in each hierarchy (see cgroup.py).
set -eu
directory=$1 image=$2 netns=$3 name=$4
shift 4

for group in "$@"; do
    echo $$ >"$group/launcher/cgroup.procs"
done

# In a mount namespace of its own: the disk is mounted as long as the host runs and not longer, however it ends.
exec setsid --fork unshare --mount --propagation slave sh -eu -c '
    directory=$1 image=$2 netns=$3 name=$4
    shift 4
    root=$directory/root
    mount -t overlay "lab-$name" "$root" \
        -o "lowerdir=$image,upperdir=$directory/disk,workdir=$directory/work"
    if [ ! -e "$directory/seeded" ]; then
        cp -a "$directory/seed/." "$root/"
        touch "$directory/seeded"
    fi
    boot=1
    while :; do
        status=0
        (
            for group in "$@"; do
                mkdir "$group/boot$boot"
                echo 0 >"$group/boot$boot/cgroup.procs"
            done
            # Nothing else in the environment, it would reach the host.
            exec env -i PATH="$PATH" \
                SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 SYSTEMD_NSPAWN_LOCK=0 SYSTEMD_NSPAWN_TMPFS_TMP=0 \
                nsenter --net="$netns" systemd-nspawn --quiet --directory="$root" --machine="$name" \
                --register=no --keep-unit --network-bridge=br0 --link-journal=no \
                --resolv-conf=off --timezone=off --console=pipe --boot
        ) || status=$?
        # 133 is a reboot asked for inside; without a manager nspawn leaves that to its caller.
        [ "$status" = 133 ] || exit "$status"
        boot=$((boot + 1))
    done
' launcher "$directory" "$image" "$netns" "$name" "$@"
