//! flexserve-model-loader
