//! One file a provider. See [`registry`] for what they hold.

pub mod anthropic;
pub mod compatible;
pub mod google;
pub mod ollama;
pub mod openai;
pub mod openrouter;
pub mod registry;
