"""What a user wrote, checked before anything is built: names, types, ranges, a rehearsal."""
