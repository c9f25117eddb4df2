"""The decision core: quota, fairness, gang admission and placement. No I/O, no clock but the snapshot's."""
