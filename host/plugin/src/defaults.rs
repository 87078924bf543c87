//! Adds the schema's defaults for settings that the user omits.

use serde_json::{Map, Value};

use crate::config::resolved;

/// Maximum number of bytes of JSON text that defaults may add. It is limited because a schema of one megabyte
/// can refer to the same default from many places.
const MOST_BYTES: usize = 1 << 20;

/// Adds the schema's defaults for missing settings. Does the same inside the tables and lists that the
/// settings contain. A default of `null` means that there is no default.
///
/// # Errors
/// Returns an error if the defaults are too large.
pub(crate) fn fill(settings: &mut Map<String, Value>, schema: &Value) -> Result<(), String> {
    let mut filling = Filling {
        root: schema,
        left: MOST_BYTES,
    };
    filling.table(settings, schema)
}

struct Filling<'a> {
    root: &'a Value,
    /// The number of bytes that may still be added.
    left: usize,
}

impl<'a> Filling<'a> {
    /// Fills in the defaults in a value. The recursion ends, because the value has a limited depth and the
    /// schema has no cycles.
    fn value(&mut self, value: &mut Value, schema: &'a Value) -> Result<(), String> {
        let schema = self.variant(schema, value);
        match value {
            Value::Object(table) => self.table(table, schema),
            Value::Array(items) => {
                let Some(of_items) = schema.get("items") else {
                    return Ok(());
                };
                items
                    .iter_mut()
                    .try_for_each(|item| self.value(item, of_items))
            }
            _ => Ok(()),
        }
    }

    fn table(&mut self, table: &mut Map<String, Value>, schema: &'a Value) -> Result<(), String> {
        let schema = resolved(schema, self.root);
        let properties = schema.get("properties").and_then(Value::as_object);
        for (key, property) in properties.into_iter().flatten() {
            if !table.contains_key(key)
                && let Some(default) = self.default_of(property)
            {
                let bytes = key.len() + default.to_string().len();
                self.left = self
                    .left
                    .checked_sub(bytes)
                    .ok_or_else(|| format!("its defaults take more than {MOST_BYTES} bytes"))?;
                table.insert(key.clone(), default.clone());
            }
            if let Some(value) = table.get_mut(key) {
                self.value(value, property)?;
            }
        }
        let parts = schema.get("allOf").and_then(Value::as_array);
        parts
            .into_iter()
            .flatten()
            .try_for_each(|part| self.table(table, part))
    }

    fn default_of(&self, property: &'a Value) -> Option<&'a Value> {
        let default = property
            .get("default")
            .or_else(|| resolved(property, self.root).get("default"));
        default.filter(|default| !default.is_null())
    }

    /// Returns the part of the schema that applies to an object or a list. Schema generators write an
    /// optional value as a choice between `null` and one other schema. If exactly one choice has the value's
    /// type, returns that choice. Otherwise, returns the schema itself.
    fn variant(&self, schema: &'a Value, value: &Value) -> &'a Value {
        let schema = resolved(schema, self.root);
        let wanted = match value {
            Value::Object(_) => "object",
            Value::Array(_) => "array",
            _ => return schema,
        };
        let choices = ["anyOf", "oneOf"]
            .into_iter()
            .filter_map(|key| schema.get(key)?.as_array())
            .flatten()
            .map(|choice| resolved(choice, self.root));
        let mut fitting =
            choices.filter(|choice| choice.get("type").and_then(Value::as_str) == Some(wanted));
        match (fitting.next(), fitting.next()) {
            (Some(only), None) => only,
            _ => schema,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn filled(schema: &Value, settings: Value) -> Value {
        let Value::Object(mut settings) = settings else {
            panic!("settings are an object");
        };
        fill(&mut settings, schema).expect("small");
        Value::Object(settings)
    }

    #[test]
    fn absent_settings_get_defaults_and_present_settings_stay() {
        let schema = json!({
            "properties": {
                "a": {"type": "integer", "default": 3},
                "b": {"$ref": "#/$defs/Level", "default": 2},
                "c": {"$ref": "#/$defs/Level"},
                "none": {"type": ["integer", "null"], "default": null},
                "free": {"type": "string"}
            },
            "$defs": {"Level": {"type": "integer", "default": 1}}
        });
        assert_eq!(filled(&schema, json!({})), json!({"a": 3, "b": 2, "c": 1}));
        let given = json!({"a": null, "b": "x", "c": 0, "other": 1});
        assert_eq!(filled(&schema, given.clone()), given);
    }

    #[test]
    fn defaults_are_added_inside_tables_and_lists() {
        let schema = json!({
            "properties": {
                "table": {"$ref": "#/$defs/Table"},
                "list": {"type": "array", "items": {"$ref": "#/$defs/Table"}},
                "maybe": {"anyOf": [{"$ref": "#/$defs/Table"}, {"type": "null"}]},
                "given": {"$ref": "#/$defs/Table", "default": {"other": 1}},
                "word": {"oneOf": [{"type": "string"}, {"$ref": "#/$defs/Table"}]}
            },
            "allOf": [{"properties": {"more": {"default": true}}}],
            "$defs": {"Table": {"type": "object", "properties": {"size": {"default": 7}}}}
        });
        let settings = json!({"table": {}, "list": [{}, {"size": 1}, 5], "maybe": {}, "word": "x"});
        let expected = json!({
            "table": {"size": 7}, "list": [{"size": 7}, {"size": 1}, 5], "maybe": {"size": 7},
            "word": "x", "given": {"other": 1, "size": 7}, "more": true
        });
        assert_eq!(filled(&schema, settings), expected);
        assert_eq!(
            filled(&schema, json!({})),
            json!({"given": {"other": 1, "size": 7}, "more": true}),
            "an absent table is not created"
        );
    }

    #[test]
    fn defaults_are_bounded() {
        let many: Map<String, Value> = (0..100)
            .map(|n| (n.to_string(), json!({"$ref": "#/$defs/Long"})))
            .collect();
        let long = "x".repeat(100_000);
        let schema = json!({"properties": many, "$defs": {"Long": {"default": long}}});
        let error = fill(&mut Map::new(), &schema).expect_err("too large");
        assert_eq!(error, "its defaults take more than 1048576 bytes");
    }
}
