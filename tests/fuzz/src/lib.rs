//! What the fuzz targets do with their input: one function for each side that reads what somebody else wrote.
//!
//! | target | who is attacked | by whom | what is parsed |
//! |---|---|---|---|
//! | [`hypervisor`] | the hypervisor | host and partitions, together | calls, message buffers, manifests, lists |
//! | [`session`] | the partition's runtime | the host | rings, frames, requests |
//! | [`model`] | the engine | whoever made the file | GGUF, vocabulary, prompt |
//! | [`tokenizer`] | the engine | whoever made the file, and the user | vocabulary, merges, text |
//! | [`schema`] | the engine | the user | JSON schema |
//! | [`template`] | the host's renderer | whoever made the file | chat template |
//! | [`npu`] | the model of the NPU | whoever owns it, and QEMU | virtqueues, job lists, vhost-user messages |
//! | [`image`] | the VMM and the packer | whoever made the file | ELF, manifest, job |
//!
//! A harness panics when a rule is broken, never on bad input. `targets/` wraps each for libFuzzer, which `cargo xtask
//! fuzz` builds and runs; the tests here run each over its committed inputs and over seeded noise, so that a harness
//! cannot rot.

mod hypervisor;
mod image;
mod model;
mod npu;
mod schema;
mod session;
mod template;
#[cfg(test)]
mod tests;
mod tokenizer;

pub use hypervisor::hypervisor;
pub use image::image;
pub use model::model;
pub use npu::npu;
pub use schema::schema;
pub use session::session;
pub use template::template;
pub use tokenizer::tokenizer;
