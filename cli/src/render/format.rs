//! The formats of output.

use std::str::FromStr;

use super::path::{CustomColumns, Template};

/// How objects are written.
#[derive(Clone, Debug)]
pub enum Format {
    /// Rows for people.
    Table,
    /// Rows with more columns.
    Wide,
    /// Objects over several lines.
    Json,
    /// One object a line.
    JsonLines,
    /// Documents.
    Yaml,
    /// What it is about, such as `pod/web-0`.
    Name,
    /// Rows of what the user has picked.
    CustomColumns(CustomColumns),
    /// A template of the user's.
    JsonPath(Template),
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("custom-columns", columns)) => Ok(Self::CustomColumns(columns.parse()?)),
            Some(("jsonpath", template)) => Ok(Self::JsonPath(template.parse()?)),
            None if text == "custom-columns" => {
                Err("custom-columns takes columns, as in custom-columns=POD:.pod,PORT:.dport".into())
            }
            None if text == "jsonpath" => {
                Err(r#"jsonpath takes a template, as in jsonpath='{.pod}{"\n"}'"#.into())
            }
            None if text == "table" => Ok(Self::Table),
            None if text == "wide" => Ok(Self::Wide),
            None if text == "json" => Ok(Self::Json),
            None if text == "jsonl" => Ok(Self::JsonLines),
            None if text == "yaml" => Ok(Self::Yaml),
            None if text == "name" => Ok(Self::Name),
            _ => Err(
                "unknown format: expected table, wide, json, jsonl, yaml, name, custom-columns=… or jsonpath=…"
                    .into(),
            ),
        }
    }
}
