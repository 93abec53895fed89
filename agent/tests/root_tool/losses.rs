//! x
crate::tests![nothing];
fn nothing() {}
