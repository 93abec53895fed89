//! Label selectors in the text form of Kubernetes, such as `app=cart,tier in (web, api),!canary`.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use kube::core::{Expression, Selector, SelectorExt};
use thiserror::Error;

/// A selector that came as text. The empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Selector);

/// The text is no selector.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{why} at character {position}")]
pub struct InvalidSelector {
    why: String,
    position: usize,
}

impl LabelSelector {
    /// Whether labels satisfy every requirement.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.matches(labels)
    }
}

impl FromStr for LabelSelector {
    type Err = InvalidSelector;

    fn from_str(text: &str) -> Result<Self, InvalidSelector> {
        let mut parser = Parser { text, position: 0 };
        let mut selector = Selector::default();

        parser.skip_space();
        if parser.rest().is_empty() {
            return Ok(Self(selector));
        }
        loop {
            selector.extend([parser.requirement()?]);
            if parser.rest().is_empty() {
                return Ok(Self(selector));
            }
            parser.expect(",")?;
        }
    }
}

/// What is left of the text. Every step leaves it behind white space.
struct Parser<'a> {
    text: &'a str,
    position: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.position..]
    }

    fn error<T>(&self, why: impl Into<String>) -> Result<T, InvalidSelector> {
        Err(InvalidSelector {
            why: why.into(),
            position: self.text[..self.position].chars().count() + 1,
        })
    }

    fn skip(&mut self, bytes: usize) {
        self.position += bytes;
        self.skip_space();
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.position += rest.len() - rest.trim_start().len();
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.skip(token.len());
        }
        found
    }

    fn expect(&mut self, token: &str) -> Result<(), InvalidSelector> {
        match self.take(token) {
            true => Ok(()),
            false => self.error(format!("expected `{token}`")),
        }
    }

    /// A run of the characters that keys and values are made of.
    fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/')))
            .unwrap_or(rest.len());
        self.skip(end);
        &rest[..end]
    }

    fn key(&mut self) -> Result<String, InvalidSelector> {
        let start = self.position;
        let key = self.word();
        match is_key(key) {
            true => Ok(key.into()),
            false => {
                self.position = start;
                self.error("expected the key of a label")
            }
        }
    }

    fn value(&mut self) -> Result<String, InvalidSelector> {
        let start = self.position;
        let value = self.word();
        match value.is_empty() || is_name(value) {
            true => Ok(value.into()),
            false => {
                self.position = start;
                self.error("not the value of a label")
            }
        }
    }

    fn requirement(&mut self) -> Result<Expression, InvalidSelector> {
        if self.take("!") {
            return Ok(Expression::DoesNotExist(self.key()?));
        }
        let key = self.key()?;
        if self.take("!=") {
            return Ok(Expression::NotEqual(key, self.value()?));
        }
        if self.take("==") || self.take("=") {
            return Ok(Expression::Equal(key, self.value()?));
        }
        if self.rest().is_empty() || self.rest().starts_with(',') {
            return Ok(Expression::Exists(key));
        }
        match self.word() {
            "in" => Ok(Expression::In(key, self.values()?)),
            "notin" => Ok(Expression::NotIn(key, self.values()?)),
            _ => self.error("expected `=`, `==`, `!=`, `in` or `notin`"),
        }
    }

    fn values(&mut self) -> Result<BTreeSet<String>, InvalidSelector> {
        let mut values = BTreeSet::new();
        self.expect("(")?;
        loop {
            values.insert(self.value()?);
            if self.take(")") {
                return Ok(values);
            }
            self.expect(",")?;
        }
    }
}

/// `[PREFIX/]NAME`, where the prefix is a DNS name.
fn is_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    is_name(name)
        && prefix.is_none_or(|p| {
            (1..=253).contains(&p.len())
                && p.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
        })
}

fn is_name(name: &str) -> bool {
    let ends_well = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    bytes.len() <= 63
        && !bytes.contains(&b'/')
        && ends_well(bytes.first())
        && ends_well(bytes.last())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn selects(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels: BTreeMap<String, String> = labels
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect();
        let selector: LabelSelector = selector.parse().expect("a selector");
        selector.selects(&labels)
    }

    #[track_caller]
    fn refused(selector: &str) -> String {
        selector
            .parse::<LabelSelector>()
            .expect_err("no selector")
            .to_string()
    }

    #[test]
    fn the_whole_grammar() {
        let cart = [("app", "cart"), ("tier", "web"), ("example.com/team", "a")];
        for (selector, expected) in [
            ("", true),
            ("  ", true),
            ("app=cart", true),
            ("app==cart", true),
            ("app = cart , tier = web", true),
            ("app=shop", false),
            ("app!=shop", true),
            ("app!=cart", false),
            ("missing!=x", true),
            ("app", true),
            ("missing", false),
            ("!missing", true),
            ("! app", false),
            ("tier in (web, api)", true),
            ("tier in (api)", false),
            ("tier in(web)", true),
            ("tier notin (web,api)", false),
            ("missing notin (web)", true),
            ("example.com/team=a", true),
            ("app=cart,tier in (web),!canary", true),
            ("app=cart,tier in (web),canary", false),
            ("app=", false),
            ("tier in (,web)", true),
        ] {
            assert_eq!(selects(selector, &cart), expected, "{selector}");
        }
        assert!(selects("empty=", &[("empty", "")]));
    }

    #[test]
    fn what_is_no_selector_is_told_with_its_place() {
        for (selector, why) in [
            ("=x", "expected the key of a label at character 1"),
            ("a=b,", "expected the key of a label at character 5"),
            (
                "a b",
                "expected `=`, `==`, `!=`, `in` or `notin` at character 4",
            ),
            ("a in web", "expected `(` at character 6"),
            ("a in (web", "expected `,` at character 10"),
            ("a=b c=d", "expected `,` at character 5"),
            ("a=b;c", "expected `,` at character 4"),
            ("a=-b", "not the value of a label at character 3"),
            ("-a=b", "expected the key of a label at character 1"),
            ("Prefix/a=b", "expected the key of a label at character 1"),
            ("a/b/c", "expected the key of a label at character 1"),
            ("é=b", "expected the key of a label at character 1"),
        ] {
            assert_eq!(refused(selector), why, "{selector}");
        }
        assert_eq!(
            refused(&"a".repeat(64)),
            "expected the key of a label at character 1"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_selector_or_refused(text in any::<String>()) {
            let _ = text.parse::<LabelSelector>();
        }

        #[test]
        fn what_kubernetes_writes_is_read_back(
            keys in prop::collection::vec("[a-z][a-z0-9-]{0,8}[a-z]", 1..4),
            values in prop::collection::btree_set("[a-zA-Z0-9]{1,8}", 1..3),
            kind in 0..6,
        ) {
            let mut selector = Selector::default();
            for key in keys {
                let one = values.first().cloned().unwrap_or_default();
                selector.extend([match kind {
                    0 => Expression::In(key, values.clone()),
                    1 => Expression::NotIn(key, values.clone()),
                    2 => Expression::Equal(key, one),
                    3 => Expression::NotEqual(key, one),
                    4 => Expression::Exists(key),
                    _ => Expression::DoesNotExist(key),
                }]);
            }
            prop_assert_eq!(selector.to_string().parse(), Ok(LabelSelector(selector)));
        }
    }
}
