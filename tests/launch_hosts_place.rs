//! Destruction in a throw-away copy, tested over a root file system that stands in for the host's.
