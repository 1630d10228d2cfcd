"""The approval feature: only versions with a valid signature of an approver go live."""
