//! Exported ONNX files in tract; see `tests/networks.rs`.
