//! Threads that run queue tasks to completion and sleep when there is nothing to do.

#![forbid(unsafe_code)]
