/*!
kubectl's `custom-columns` and `jsonpath`.

Text and literals are handled here; the paths between are RFC 9535 but for their spelling, so they are spelled anew and
left to a library. Of kubectl's language `range` is missing: every event is an object of its own.
*/

use std::str::FromStr;

use jsonpath_rust::parser::model::JpQuery;
use jsonpath_rust::parser::parse_json_path;
use jsonpath_rust::query::js_path_process;
use serde_json::Value;

use super::columns::Cell;

/// `NAME:.path,…`
#[derive(Clone, Debug)]
pub struct CustomColumns(Vec<(String, Path)>);

impl CustomColumns {
    /// The least widths: those of the names.
    pub fn widths(&self) -> Vec<usize> {
        self.0
            .iter()
            .map(|(name, _)| name.chars().count())
            .collect()
    }

    /// The names.
    pub fn header(&self) -> impl Iterator<Item = Cell<'_>> {
        self.0.iter().map(|(name, _)| name.as_str().into())
    }

    /// What an object has there.
    pub fn cells(&self, object: &Value) -> impl Iterator<Item = Cell<'static>> {
        self.0.iter().map(move |(_, path)| {
            let values = path.find(object);
            match values.is_empty() {
                true => "<none>".into(),
                false => values.join(",").into(),
            }
        })
    }
}

impl FromStr for CustomColumns {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        outside_of_brackets(text, ',')
            .into_iter()
            .map(|column| match column.split_once(':') {
                Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                    let path = path
                        .strip_prefix('{')
                        .and_then(|p| p.strip_suffix('}'))
                        .unwrap_or(path);
                    Ok((name.to_string(), path.parse()?))
                }
                _ => Err(format!("`{column}` is not NAME:.path")),
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// `{.path}` between text, and `{"literal"}`.
#[derive(Clone, Debug)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Path(Path),
}

impl Template {
    /// The template with what an object has in it; several values of one path are separated by spaces.
    pub fn fill(&self, object: &Value) -> String {
        self.0
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.clone(),
                Part::Path(path) => path.find(object).join(" "),
            })
            .collect()
    }
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            let (before, from) = rest.split_at(open);
            if !before.is_empty() {
                parts.push(Part::Text(before.into()));
            }
            let inside = &from[1..];
            let close = end_of_action(inside)
                .ok_or_else(|| format!("`{{{inside}` has no closing brace"))?;
            parts.push(action(inside[..close].trim())?);
            rest = &inside[close + 1..];
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.into()));
        }
        Ok(Self(parts))
    }
}

/// Where the brace is that closes an action: not in a string.
fn end_of_action(text: &str) -> Option<usize> {
    let mut nesting = Nesting::default();
    text.char_indices()
        .find(|(_, c)| nesting.take_outside_of_strings(*c) && *c == '}')
        .map(|(at, _)| at)
}

fn action(text: &str) -> Result<Part, String> {
    let keyword = text.split([' ', '.', '[']).next().unwrap_or_default();
    match text.chars().next() {
        Some('"') => serde_json::from_str(text)
            .map(Part::Text)
            .map_err(|e| format!("{text} is not a string: {e}")),
        Some('\'') => {
            let inner = text[1..].strip_suffix('\'');
            let inner = inner.filter(|i| !i.contains('\''));
            inner
                .map(|i| Part::Text(i.into()))
                .ok_or_else(|| format!("{text} is not a string"))
        }
        _ if keyword == "range" || keyword == "end" => {
            Err("range is not supported: every event is an object of its own".into())
        }
        _ => text.parse().map(Part::Path),
    }
}

/// `.pod`, `pod`, `.workload.name`, `.labels.app\.kubernetes\.io/name`, `['pod']`, `..name`, `.labels.*`
#[derive(Clone, Debug)]
struct Path(JpQuery);

impl Path {
    /// What an object has there: strings as they are, everything else as JSON.
    fn find(&self, object: &Value) -> Vec<String> {
        let found = js_path_process(&self.0, object).unwrap_or_default();
        found
            .into_iter()
            .map(|found| match found.val() {
                Value::String(text) => text.clone(),
                value => value.to_string(),
            })
            .collect()
    }
}

impl FromStr for Path {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("`{text}` is not a path, such as .pod or .workload.name");
        if text.is_empty() {
            return Err(refused());
        }
        let standard = standard_path(text).ok_or_else(refused)?;
        parse_json_path(&standard).map(Self).map_err(|_| refused())
    }
}

/// kubectl's spelling in RFC 9535's: names may have nearly any character, with a backslash before dots.
fn standard_path(text: &str) -> Option<String> {
    let text = text.strip_prefix('$').unwrap_or(text);
    let mut path = String::from("$");
    let mut rest = text;
    // The first dot may be missing.
    if !rest.starts_with(['.', '[']) && !rest.is_empty() {
        let (name, behind) = field(rest)?;
        path += &name;
        rest = behind;
    }
    while !rest.is_empty() {
        if rest == "." && path == "$" {
            break;
        } else if let Some(behind) = rest.strip_prefix("..") {
            path += "..";
            rest = behind;
            if !rest.starts_with('[') {
                let (name, behind) = field(rest)?;
                path += &name;
                rest = behind;
            }
        } else if let Some(behind) = rest.strip_prefix('.') {
            let (name, behind) = field(behind)?;
            path += &name;
            rest = behind;
        } else {
            let end = end_of_brackets(rest)?;
            path += &rest[..end];
            rest = &rest[end..];
        }
    }
    Some(path)
}

/// A name or `*` at the start, in brackets, and what is behind it.
fn field(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    let mut end = text.len();
    while let Some((at, c)) = chars.next() {
        match c {
            '.' | '[' => {
                end = at;
                break;
            }
            '\\' => name.push(chars.next()?.1),
            c => name.push(c),
        }
    }
    let quoted = match name.as_str() {
        "" => return None,
        "*" => "*".into(),
        name => serde_json::to_string(name).ok()?,
    };
    Some((format!("[{quoted}]"), &text[end..]))
}

/// Where the brackets end that the text starts with.
fn end_of_brackets(text: &str) -> Option<usize> {
    let mut nesting = Nesting::default();
    text.char_indices()
        .find(|(_, c)| nesting.take_outside(*c) && *c == ']')
        .map(|(at, _)| at + 1)
}

/// Splits where a character is neither in brackets nor in a string.
fn outside_of_brackets(text: &str, separator: char) -> Vec<&str> {
    let mut nesting = Nesting::default();
    text.split(|c| nesting.take_outside(c) && c == separator)
        .collect()
}

/// Follows brackets and strings through a text.
#[derive(Default)]
struct Nesting {
    depth: usize,
    quote: Option<char>,
    escaped: bool,
}

impl Nesting {
    /// Takes the next character; says whether it is outside of strings: those around them are inside.
    fn take_outside_of_strings(&mut self, c: char) -> bool {
        match self.quote {
            Some(_) if self.escaped => self.escaped = false,
            Some(_) if c == '\\' => self.escaped = true,
            Some(quote) if c == quote => self.quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '\'') => self.quote = Some(c),
            None => return true,
        }
        false
    }

    /// The same of strings and brackets: the last one that closes is outside.
    fn take_outside(&mut self, c: char) -> bool {
        if !self.take_outside_of_strings(c) {
            return false;
        }
        match c {
            '[' | '(' => self.depth += 1,
            ']' | ')' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.depth == 0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object() -> Value {
        json!({
            "pod": "web-0",
            "dport": 443,
            "host_network": false,
            "workload": { "kind": "Deployment", "name": "web" },
            "labels": { "app.kubernetes.io/name": "shop", "tier": "a b" },
        })
    }

    #[track_caller]
    fn filled(template: &str) -> String {
        template
            .parse::<Template>()
            .expect("a template")
            .fill(&object())
    }

    #[track_caller]
    fn refused(template: &str) -> String {
        template.parse::<Template>().expect_err("not a template")
    }

    #[test]
    fn paths() {
        for (path, expected) in [
            ("{.pod}", "web-0"),
            ("{pod}", "web-0"),
            ("{$.pod}", "web-0"),
            ("{['pod']}", "web-0"),
            ("{.dport}", "443"),
            ("{.host_network}", "false"),
            ("{.workload.name}", "web"),
            ("{.workload}", r#"{"kind":"Deployment","name":"web"}"#),
            (r"{.labels.app\.kubernetes\.io/name}", "shop"),
            ("{.labels['tier']}", "a b"),
            (r#"{.labels["app.kubernetes.io/name"]}"#, "shop"),
            ("{.workload['kind','name']}", "Deployment web"),
            ("{.workload.*}", "Deployment web"),
            ("{..name}", "web"),
            ("{.missing}", ""),
            ("{.pod.missing}", ""),
            ("{.labels[?(@ == 'a b')]}", "a b"),
        ] {
            assert_eq!(filled(path), expected, "{path}");
        }
    }

    #[test]
    fn templates() {
        assert_eq!(filled(r#"{.pod}{"\t"}{.dport}{"\n"}"#), "web-0\t443\n");
        assert_eq!(filled("pod={.pod} {'}'} "), "pod=web-0 } ");
        assert_eq!(filled(r#"{"}"}{ .pod }"#), "}web-0");
        assert_eq!(filled(""), "");
    }

    #[test]
    fn what_is_not_understood_is_said() {
        assert_eq!(refused("{.pod"), "`{.pod` has no closing brace");
        assert_eq!(
            refused("{range .items[*]}{.pod}{end}"),
            "range is not supported: every event is an object of its own"
        );
        assert!(refused(r#"{"a" "b"}"#).contains("is not a string"));
        for path in [
            "{}",
            "{.pod..}",
            "{.labels[}",
            "{.labels[?(]}",
            "{.a[1x]}",
            "{...a}",
        ] {
            assert!(
                refused(path).contains("is not a path"),
                "{path}: {}",
                refused(path)
            );
        }
    }

    #[test]
    fn custom_columns() {
        let columns: CustomColumns =
            r"POD:.pod,KINDS:.workload['kind','name'],APP:{.labels.app\.kubernetes\.io/name},X:.x"
                .parse()
                .expect("columns");
        assert_eq!(columns.widths(), [3, 5, 3, 1]);
        assert!(
            columns
                .header()
                .eq(["POD", "KINDS", "APP", "X"].map(Cell::from))
        );
        let cells: Vec<_> = columns.cells(&object()).collect();
        assert_eq!(
            cells,
            ["web-0", "Deployment,web", "shop", "<none>"].map(Cell::from)
        );
        for text in ["", "POD", "POD:", ":.pod", "POD:.pod,", "POD:.a[,B:.b"] {
            assert!(text.parse::<CustomColumns>().is_err(), "{text}");
        }
    }
}
