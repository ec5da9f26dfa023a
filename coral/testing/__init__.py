"""What proves that coral keeps what it promises: disks that record, fail and kill, and what a power cut may leave."""
