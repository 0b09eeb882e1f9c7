//! The description of both ports (OpenAPI 3.1), with the events' schema in it.

use serde_json::{Value, json};

use crate::event;

pub fn document() -> Value {
    let problem = || json!({ "description": "what went wrong (RFC 9457)", "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } } });
    let get = |id: &str, summary: &str, body: Value| json!({ "get": { "operationId": id, "summary": summary, "responses": { "200": { "description": summary, "content": body }, "default": problem() } } });
    let object = || json!({ "application/json": { "schema": { "type": "object" } } });
    let post = |id: &str, summary: &str, schema: Value| {
        json!({ "post": {
            "operationId": id,
            "summary": summary,
            "requestBody": { "content": { "application/json": { "schema": schema } } },
            "responses": { "202": { "description": "accepted", "content": object() }, "default": problem() },
        } })
    };
    let parameter = |name: &str, place: &str, schema: Value, what: &str| json!({ "name": name, "in": place, "schema": schema, "description": what });
    let with_id = |mut item: Value| {
        item["parameters"] = json!([{ "name": "id", "in": "path", "required": true, "schema": { "type": "string" } }]);
        item
    };
    let text = || json!({ "type": "string" });
    let mut stream = get(
        "readStream",
        "the session's events, as server-sent events",
        json!({ "text/event-stream": { "schema": { "type": "string" }, "x-event-schema": { "$ref": "#/components/schemas/Event" } } }),
    );
    stream["get"]["parameters"] = json!([
        parameter(
            "Last-Event-ID",
            "header",
            json!({ "type": "integer" }),
            "the last sequence that was seen; wins over `since`"
        ),
        parameter(
            "since",
            "query",
            json!({ "type": "integer" }),
            "the last sequence that was seen"
        ),
        parameter(
            "view",
            "query",
            json!({ "type": "string", "enum": ["native", "x1", "raw"] }),
            "the shape"
        ),
        parameter("types", "query", text(), "only these types, with commas"),
        parameter(
            "deltas",
            "query",
            json!({ "type": "string", "enum": ["0", "1"] }),
            "`0`: only whole messages"
        ),
        parameter(
            "named",
            "query",
            json!({ "type": "string", "enum": ["0", "1"] }),
            "`1`: with `event:` lines"
        ),
        parameter("ticket", "query", text(), "from `POST /ticket`"),
    ]);
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Outrigger adapter", "version": env!("CARGO_PKG_VERSION"), "description": "One coding session: its events, and what users say to it.", "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" } },
        "servers": [
            { "url": "http://localhost:3100", "description": "the stream; every other route too" },
            { "url": "http://localhost:8788", "description": "inputs and answers alone" },
        ],
        "security": [{ "bearer": [] }, {}],
        "paths": {
            "/stream": stream,
            "/health": get("readHealth", "whether it works", object()),
            "/readyz": get("readReadiness", "whether inputs are delivered as they come", object()),
            "/status": get("readStatus", "what the session does, and what it has used", object()),
            "/capabilities": get("readCapabilities", "what its runtime can do", object()),
            "/inputs": get("listInputs", "the inputs that wait", json!({ "application/json": { "schema": { "$ref": "#/components/schemas/Inputs" } } })),
            "/inputs/{id}": with_id(json!({ "delete": { "operationId": "takeBackInput", "summary": "take back an input that waits", "responses": { "200": { "description": "it will not be delivered", "content": object() }, "default": problem() } } })),
            "/schema/events.json": get("readEventSchema", "the JSON Schema of an event", json!({ "application/schema+json": {} })),
            "/ticket": { "post": { "operationId": "drawTicket", "summary": "a one-minute ticket for `GET /stream?ticket=`", "responses": { "200": { "description": "a ticket", "content": object() }, "default": problem() } } },
            "/inject": post("inject", "give the agent an input", json!({ "$ref": "#/components/schemas/Input" })),
            "/interrupt": post("interrupt", "stop the running turn", json!({ "type": "object" })),
            "/permission/{id}": with_id(post("decide", "decide on a `permission.request`", json!({ "type": "object", "required": ["decision"], "properties": { "decision": { "type": "string", "enum": ["allow", "allow_always", "deny"] }, "message": text() } }))),
            "/question/{id}": with_id(post("answerQuestion", "answer a `question.request`", json!({ "type": "object", "properties": { "answer": text(), "answers": { "type": "array", "items": {} }, "reject": { "type": "boolean" } } }))),
            "/keepalive": post("keepAlive", "somebody is there: the idle time starts again", json!({ "type": "object" })),
            "/shutdown": post("shutDown", "end the session", json!({ "type": "object", "properties": { "summary": text() } })),
        },
        "components": {
            "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer" } },
            "schemas": {
                "Inputs": { "type": "object", "required": ["inputs"], "properties": { "inputs": { "type": "array", "items": { "type": "object", "required": ["input_id", "text", "mode", "source", "position", "state"], "properties": {
                    "input_id": text(), "text": text(), "mode": text(), "source": text(), "sender_id": { "type": ["string", "null"] },
                    "position": { "type": "integer", "description": "1: the next" }, "state": { "type": "string", "enum": ["waiting", "sent"] },
                } } } } },
                "Event": embedded(event::schema()),
                "Problem": { "type": "object", "required": ["type", "title", "status", "code", "detail"], "properties": { "type": text(), "title": text(), "status": { "type": "integer" }, "code": text(), "detail": text(), "hint": text() } },
                "Input": { "type": "object", "required": ["text"], "properties": {
                    "text": { "type": "string", "maxLength": 65536 },
                    "input_id": { "type": "string", "maxLength": 256, "description": "the same id again delivers nothing; also `event_id`, `request_id`, or the header `Idempotency-Key`" },
                    "mode": { "type": "string", "enum": ["auto", "queue", "steer", "interrupt"] },
                    "sender_id": text(),
                    "attachments": { "type": "array", "items": { "type": "object", "required": ["type", "media_type", "data"], "properties": { "type": { "const": "image" }, "media_type": text(), "data": { "type": "string", "contentEncoding": "base64" } } } },
                } },
            },
        },
    })
}

/// A schema of its own, as a part of this document: its references lead to where it stands.
fn embedded(mut schema: Value) -> Value {
    if let Some(object) = schema.as_object_mut() {
        object.remove("$schema");
    }
    relocate(&mut schema);
    schema
}

fn relocate(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get_mut("$ref") {
                *reference = reference.replacen("#/$defs/", "#/components/schemas/Event/$defs/", 1);
            }
            map.values_mut().for_each(relocate);
        }
        Value::Array(items) => items.iter_mut().for_each(relocate),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|v| references(v, found));
            }
            Value::Array(items) => items.iter().for_each(|v| references(v, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_operation_has_an_id() {
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 20);
        for reference in found {
            assert!(
                document
                    .pointer(reference.trim_start_matches('#'))
                    .is_some(),
                "{reference}"
            );
        }
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item
                .as_object()
                .unwrap()
                .iter()
                .filter(|(name, _)| *name != "parameters")
            {
                assert!(operation["operationId"].is_string(), "{method} {path}");
            }
        }
    }
}
