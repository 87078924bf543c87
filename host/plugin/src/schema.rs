//! The JSON Schema of a plugin's settings, restricted so that it can be checked in bounded time.
//!
//! The schema comes from the plugin and is read before the plugin is trusted. So the host fetches nothing for
//! it, its patterns must not need backtracking, and its references must point into the schema itself, without
//! cycles. Its expanded size is limited, since a huge schema could keep the host busy forever. In practice,
//! the limit does not matter, because a plugin's settings are a small table.

use std::collections::HashMap;

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

/// Maximum number of values in a schema, counted with every reference replaced by its target.
const MOST_VALUES: u64 = 100_000;
/// Maximum nesting depth, also counted with every reference replaced by its target.
const DEEPEST: u64 = 128;
/// Maximum size of a compiled pattern in bytes.
const LARGEST_PATTERN: usize = 1 << 20;
/// Maximum number of patterns. All of them are compiled even if the schema is only inspected.
const MOST_PATTERNS: usize = 32;
/// Keywords that contain an object whose keys are arbitrary names.
const NAMED: [&str; 5] = [
    "properties",
    "patternProperties",
    "$defs",
    "definitions",
    "dependentSchemas",
];

/// Compiles the schema into a validator.
///
/// # Errors
/// Returns an error if the schema is not a JSON Schema or exceeds the host's restrictions.
pub fn compile(schema: &Value) -> Result<Validator, String> {
    Unfolding::check(schema)?;
    jsonschema::options()
        .with_pattern_options(PatternOptions::regex().size_limit(LARGEST_PATTERN))
        .build(schema)
        .map_err(|error| error.to_string())
}

/// Computes the size that a schema would have with every reference expanded. Nothing is actually expanded:
/// each target is measured only once.
struct Unfolding<'a> {
    root: &'a Value,
    targets: HashMap<&'a str, Target>,
    patterns: usize,
}

enum Target {
    /// The target is being measured. Reaching it again means that there is a cycle.
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
                "it has more than {MOST_VALUES} values when its references are expanded"
            ));
        }
        Ok(())
    }

    fn measure(&mut self, value: &'a Value, above: u64) -> Result<Size, String> {
        if above > DEEPEST {
            return Err(format!("it is nested more than {DEEPEST} levels deep"));
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
                            return Err(format!("{key} is not supported"));
                        }
                        // A nested id would change the meaning of the references below it.
                        ("$id" | "id", Value::String(_)) if above > 0 => {
                            return Err(format!("a nested {key} is not supported"));
                        }
                        // These keywords contain plain data without nested schemas.
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
            return Err(format!("it is nested more than {DEEPEST} levels deep"));
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
            Some(Target::Open) => return Err(format!("it refers to itself through {to:?}")),
            Some(Target::Measured(size)) if above + size.depth > DEEPEST => {
                return Err(format!("it is nested more than {DEEPEST} levels deep"));
            }
            Some(Target::Measured(size)) => return Ok(*size),
            None => {}
        }
        let target = to
            .strip_prefix('#')
            .filter(|path| path.starts_with('/') && !path.contains('%'))
            .and_then(|path| self.root.pointer(path))
            .ok_or_else(|| format!("it refers to {to:?}, which is not inside the schema"))?;
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
        compile(schema).expect_err("rejected")
    }

    #[test]
    fn common_schemas_are_accepted() {
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
    fn a_cycle_is_rejected() {
        for schema in [
            json!({"$ref": "#"}),
            json!({"allOf": [{"$ref": "#"}]}),
            json!({"properties": {"a": {"$ref": "#/properties/a"}}}),
            json!({"$ref": "#/$defs/a", "$defs": {
                "a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"not": {"$ref": "#/$defs/a"}}
            }}),
        ] {
            assert!(refusal(&schema).starts_with("it refers to itself through \"#"));
        }
    }

    #[test]
    fn external_references_are_rejected_and_not_fetched() {
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
            let expected = format!("it refers to {to:?}, which is not inside the schema");
            assert_eq!(refusal(&schema), expected);
        }
        for key in ["$dynamicRef", "$recursiveRef"] {
            let schema = json!({"properties": {"a": {key: "#"}}});
            assert_eq!(refusal(&schema), format!("{key} is not supported"));
        }
        let inside = json!({"properties": {"a": {"$id": "http://127.0.0.1:9/"}}});
        assert_eq!(refusal(&inside), "a nested $id is not supported");
        compile(&json!({"$schema": "http://127.0.0.1:9/meta"})).expect_err("not fetched");
    }

    /// A schema with sixty definitions, each of which expands to twice the size of the next.
    #[test]
    fn a_schema_that_unfolds_to_a_huge_size_is_rejected() {
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
        assert_eq!(refusal(&deep), "it is nested more than 128 levels deep");
    }

    #[test]
    fn a_pattern_that_backtracks_or_is_huge_is_rejected() {
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
        // A backtracking matcher would take forever for this pattern.
        let schema = json!({"properties": {"a": {"pattern": "^(a+)+$"}}});
        let validator = compile(&schema).expect("a schema");
        let hostile = "a".repeat(50_000) + "!";
        assert!(!validator.is_valid(&json!({"a": hostile})));
    }
}
