//! The seeded simulator (under construction).
