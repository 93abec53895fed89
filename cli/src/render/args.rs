//! The options of output.

use clap::{Args as Group, ValueEnum};

use super::format::Format;

/// How events are written.
#[derive(Clone, Debug, Group)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Write the type in full and the network namespace
    #[arg(short, long, global = true)]
    pub verbose: bool,

    /// Write the time since the first event: seconds, or nanoseconds with -v
    #[arg(short, long, global = true)]
    pub timestamp: bool,

    /// One of table, wide, json, jsonl, yaml, name, custom-columns=NAME:.path,… and jsonpath=TEMPLATE
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "table",
        hide_default_value = true
    )]
    pub output: Format,

    /// Colour the rows by pod
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t)]
    pub color: Color,
}

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}
