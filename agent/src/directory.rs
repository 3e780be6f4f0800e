//! Keeps the directory snapshot current, and tells its author what came of it.
