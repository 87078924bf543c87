//! The JSON Schema of a plugin's settings, of the kind that is checked in bounded time.
//!
//! The schema is the plugin's, and is read before the plugin is trusted with anything. So nothing is
//! fetched for it, its patterns are of the kind that needs no backtracking, and it refers only to
//! parts of itself and never in a circle: settings are a small table, and a schema that unfolds to
//! more than the host wants to look at would keep it busy for as long as its author likes.

use std::collections::HashMap;

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

/// Most values that a schema may have, with everything that it refers to in the place of the
/// reference.
const MOST_VALUES: u64 = 100_000;
/// How deep it may nest, counted the same way.
const DEEPEST: u64 = 128;
/// Largest compiled pattern in bytes.
const LARGEST_PATTERN: usize = 1 << 20;
/// Most patterns, all of which are compiled while the schema is only looked at.
const MOST_PATTERNS: usize = 32;
/// Keywords whose members have names of the schema's own choice.
const NAMED: [&str; 5] = [
    "properties",
    "patternProperties",
    "$defs",
    "definitions",
    "dependentSchemas",
];

/// Makes the schema ready to check settings.
///
/// # Errors
/// Says why it is no JSON Schema, or none that the host takes.
pub fn compile(schema: &Value) -> Result<Validator, String> {
    Unfolding::check(schema)?;
    jsonschema::options()
        .with_pattern_options(PatternOptions::regex().size_limit(LARGEST_PATTERN))
        .build(schema)
        .map_err(|error| error.to_string())
}

/// How large a schema is with every reference followed, found without unfolding it: each target is
/// measured once.
struct Unfolding<'a> {
    root: &'a Value,
    targets: HashMap<&'a str, Target>,
    patterns: usize,
}

enum Target {
    /// It is being measured; whoever comes to it again has gone in a circle.
    Open,
    Measured(Size),
}

#[derive(Clone, Copy)]
struct Size {
    values: u64,
    depth: u64,
}

impl<'a> Unfolding<'a> {
    fn check(schema: &'a Value) -> Result<(), String> {
        let mut unfolding = Self {
            root: schema,
            targets: HashMap::from([("#", Target::Open)]),
            patterns: 0,
        };
        let size = unfolding.measure(schema, 0)?;
        if size.values > MOST_VALUES {
            return Err(format!(
                "it has more than {MOST_VALUES} values with what it refers to"
            ));
        }
        Ok(())
    }

    fn measure(&mut self, value: &'a Value, above: u64) -> Result<Size, String> {
        if above > DEEPEST {
            return Err(format!("it nests more than {DEEPEST} deep"));
        }
        let mut size = Size {
            values: 1,
            depth: 1,
        };
        let mut add = |part: Size| {
            size.values = size.values.saturating_add(part.values);
            size.depth = size.depth.max(1 + part.depth);
        };
        match value {
            Value::Array(items) => {
                for item in items {
                    add(self.measure(item, above + 1)?);
                }
            }
            Value::Object(members) => {
                for (key, member) in members {
                    match (key.as_str(), member) {
                        (named, Value::Object(schemas)) if NAMED.contains(&named) => {
                            if named == "patternProperties" {
                                self.count_patterns(schemas.len())?;
                            }
                            for schema in schemas.values() {
                                add(self.measure(schema, above + 2)?);
                            }
                        }
                        ("pattern", Value::String(_)) => self.count_patterns(1)?,
                        ("$ref", Value::String(to)) => add(self.follow(to, above + 1)?),
                        ("$dynamicRef" | "$recursiveRef", Value::String(_)) => {
                            return Err(format!("{key} is not taken here"));
                        }
                        // It would change what the references below it mean.
                        ("$id" | "id", Value::String(_)) if above > 0 => {
                            return Err(format!("{key} is not taken inside of it"));
                        }
                        // Plain data, in which nothing is a keyword.
                        ("enum" | "examples", Value::Array(items)) => add(Size {
                            values: items.len() as u64,
                            depth: 0,
                        }),
                        ("default" | "const", _) => {}
                        _ => add(self.measure(member, above + 1)?),
                    }
                }
            }
            _ => {}
        }
        if above + size.depth > 2 * DEEPEST {
            return Err(format!("it nests more than {DEEPEST} deep"));
        }
        Ok(size)
    }

    fn count_patterns(&mut self, more: usize) -> Result<(), String> {
        self.patterns += more;
        match self.patterns <= MOST_PATTERNS {
            true => Ok(()),
            false => Err(format!("it has more than {MOST_PATTERNS} patterns")),
        }
    }

    fn follow(&mut self, to: &'a str, above: u64) -> Result<Size, String> {
        match self.targets.get(to) {
            Some(Target::Open) => return Err(format!("it refers to itself by {to:?}")),
            Some(Target::Measured(size)) if above + size.depth > DEEPEST => {
                return Err(format!("it nests more than {DEEPEST} deep"));
            }
            Some(Target::Measured(size)) => return Ok(*size),
            None => {}
        }
        let target = to
            .strip_prefix('#')
            .filter(|path| path.starts_with('/') && !path.contains('%'))
            .and_then(|path| self.root.pointer(path))
            .ok_or_else(|| format!("it refers to {to:?}, which is not part of it"))?;
        self.targets.insert(to, Target::Open);
        let size = self.measure(target, above)?;
        self.targets.insert(to, Target::Measured(size));
        Ok(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, json};

    fn refusal(schema: &Value) -> String {
        compile(schema).expect_err("refused")
    }

    #[test]
    fn what_schemas_are_made_of_is_taken() {
        let schema = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": "https://example.org/settings",
            "type": "object",
            "properties": {
                "level": {"anyOf": [{"$ref": "#/$defs/Level"}, {"type": "null"}], "default": null},
                "name": {"type": "string", "pattern": "^[a-z]+$"},
                "choice": {"enum": ["a", {"$ref": "#"}]},
                "sink": {"type": "object", "default": {"id": "main", "$ref": "#"}},
                "default": {"type": "integer"}
            },
            "$defs": {"Level": {"type": "integer"}}
        });
        let validator = compile(&schema).expect("a schema");
        assert!(validator.is_valid(&json!({"level": 3, "name": "x"})));
        assert!(!validator.is_valid(&json!({"level": "x"})));
        assert!(!validator.is_valid(&json!({"name": "X"})));
        assert!(!validator.is_valid(&json!({"default": "x"})));
    }

    #[test]
    fn a_circle_is_refused() {
        for schema in [
            json!({"$ref": "#"}),
            json!({"allOf": [{"$ref": "#"}]}),
            json!({"properties": {"a": {"$ref": "#/properties/a"}}}),
            json!({"$ref": "#/$defs/a", "$defs": {
                "a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"not": {"$ref": "#/$defs/a"}}
            }}),
        ] {
            assert!(refusal(&schema).starts_with("it refers to itself by \"#"));
        }
    }

    #[test]
    fn nothing_outside_of_it_is_looked_for() {
        for to in [
            "http://127.0.0.1:9/x.json",
            "file:///etc/passwd",
            "other.json",
            "#anchor",
            "#/no/such/part",
            "#/%24defs/a",
            "",
        ] {
            let schema = json!({"properties": {"a": {"$ref": to}}, "$defs": {"a": {}}});
            let expected = format!("it refers to {to:?}, which is not part of it");
            assert_eq!(refusal(&schema), expected);
        }
        for key in ["$dynamicRef", "$recursiveRef"] {
            let schema = json!({"properties": {"a": {key: "#"}}});
            assert_eq!(refusal(&schema), format!("{key} is not taken here"));
        }
        let inside = json!({"properties": {"a": {"$id": "http://127.0.0.1:9/"}}});
        assert_eq!(refusal(&inside), "$id is not taken inside of it");
        compile(&json!({"$schema": "http://127.0.0.1:9/meta"})).expect_err("not fetched");
    }

    /// Sixty definitions, each twice the one before.
    #[test]
    fn a_schema_that_unfolds_without_end_is_refused() {
        let mut defs = Map::new();
        for level in 0..60 {
            let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
            defs.insert(format!("d{level}"), json!({"allOf": [next, next]}));
        }
        defs.insert("d60".to_owned(), json!({"type": "object"}));
        let wide = json!({"$ref": "#/$defs/d0", "$defs": defs});
        let said = refusal(&wide);
        assert!(said.contains("more than"), "{said}");

        let mut chain = Map::new();
        for level in 0..20_000 {
            let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
            chain.insert(format!("d{level}"), json!({"items": next}));
        }
        chain.insert("d20000".to_owned(), json!({}));
        let deep = json!({"$defs": chain, "$ref": "#/$defs/d0"});
        assert_eq!(refusal(&deep), "it nests more than 128 deep");
    }

    #[test]
    fn a_pattern_that_backtracks_or_is_huge_is_refused() {
        for pattern in [r"(a+)\1", "(?=a)b", "(((x{100}){100}){100}){100}", "("] {
            let schema = json!({"properties": {"a": {"type": "string", "pattern": pattern}}});
            assert!(compile(&schema).is_err(), "{pattern}");
        }
        let many = |count| {
            let pattern = |n| (format!("p{n}"), json!({"pattern": format!("a{n}")}));
            json!({"properties": (0..count).map(pattern).collect::<Map<_, _>>()})
        };
        compile(&many(MOST_PATTERNS)).expect("a schema");
        assert_eq!(
            refusal(&many(MOST_PATTERNS + 1)),
            "it has more than 32 patterns"
        );
        let names = (0..=MOST_PATTERNS).map(|n| (format!("a{n}"), json!({})));
        let names = json!({"patternProperties": names.collect::<Map<_, _>>()});
        assert_eq!(refusal(&names), "it has more than 32 patterns");
        // What takes a backtracking matcher for ever.
        let schema = json!({"properties": {"a": {"pattern": "^(a+)+$"}}});
        let validator = compile(&schema).expect("a schema");
        let hostile = "a".repeat(50_000) + "!";
        assert!(!validator.is_valid(&json!({"a": hostile})));
    }
}
