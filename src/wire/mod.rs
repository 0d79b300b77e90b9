pub mod codec;
pub mod ids;
