"""What coral writes, as pure functions of bytes: no file is opened here. SPEC.md beside this file is the contract."""
