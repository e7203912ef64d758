/* SPDX-License-Identifier: (GPL-2.0 OR MIT)
 *
 * Programs that keep the gate's pins in bpffs until they are unlocked: see struct gate_pins.
 */
#ifndef SPLITLOCK_KEEP_H
#define SPLITLOCK_KEEP_H

struct super_block {
	unsigned int s_dev;
} __attribute__((preserve_access_index));

struct inode {
	struct super_block *i_sb;
	unsigned long i_ino;
} __attribute__((preserve_access_index));

struct dentry {
	struct inode *d_inode;
} __attribute__((preserve_access_index));

struct vfsmount {
	struct super_block *mnt_sb;
} __attribute__((preserve_access_index));

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
} __attribute__((preserve_access_index));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct gate_pins);
} pins SEC(".maps");

/* Keep the pins while they are locked: a catch against mistakes, since root can unlock them as we do. */
static __always_inline int keep(struct inode *directory, int before)
{
	struct gate_pins *kept = bpf_map_lookup_elem(&pins, &zero);

	if (before || !kept || !kept->locked)
		return before;
	if (!directory) /* a name that is not there yet */
		return 0;
	return directory->i_ino == kept->inode && directory->i_sb->s_dev == kept->device ? -GATE_ERRNO_REFUSED : 0;
}

SEC("lsm/inode_unlink")
int BPF_PROG(keep_unlink, struct inode *directory, struct dentry *dentry, int before)
{
	return answer(keep(directory, before));
}

SEC("lsm/inode_rename")
int BPF_PROG(keep_rename, struct inode *from, struct dentry *old, struct inode *to, struct dentry *new, int before)
{
	before = keep(from, before);
	before = keep(to, before); /* what is renamed to takes the place of what is there */
	before = keep(old->d_inode, before); /* the directory itself: the gate would be looked for in vain */
	return answer(keep(new->d_inode, before));
}

/* The kernel removes no directory with something in it; this is said here, too, for one whose pins were taken by force. */
SEC("lsm/inode_rmdir")
int BPF_PROG(keep_rmdir, struct inode *directory, struct dentry *dentry, int before)
{
	return answer(keep(dentry->d_inode, before));
}

SEC("lsm/sb_umount")
int BPF_PROG(keep_mount, struct vfsmount *mount, int flags, int before)
{
	struct gate_pins *kept = bpf_map_lookup_elem(&pins, &zero);

	if (before || !kept || !kept->locked)
		return answer(before);
	return answer(mount->mnt_sb->s_dev == kept->device ? -GATE_ERRNO_REFUSED : 0);
}

#endif
