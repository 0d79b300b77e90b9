//! KeyPackages: which are taken from a client, and which is handed out. PROTOCOL.md §5; TR §5.8, §5.9.
//!
//! Pure. Deliberately absent: consent, and how handing out once is made atomic.

pub mod pick;
pub mod publish;
