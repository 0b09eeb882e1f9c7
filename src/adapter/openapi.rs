//! The description of both ports (OpenAPI 3.1), with the events' schema in it.

use serde_json::{Value, json};

use crate::event;

pub fn document() -> Value {
    let problem = || json!({ "description": "what went wrong (RFC 9457)", "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } } });
    let get = |summary: &str, body: Value| json!({ "get": { "summary": summary, "responses": { "200": { "description": summary, "content": body }, "default": problem() } } });
    let object = || json!({ "application/json": { "schema": { "type": "object" } } });
    let post = |summary: &str, schema: Value| {
        json!({ "post": {
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
        "the session's events, as server-sent events",
        json!({ "text/event-stream": { "schema": { "type": "string" }, "x-event-schema": { "$ref": "#/components/schemas/Event" } } }),
    );
    stream["get"]["parameters"] = json!([
        parameter("Last-Event-ID", "header", json!({ "type": "integer" }), "the last sequence that was seen; wins over `since`"),
        parameter("since", "query", json!({ "type": "integer" }), "the last sequence that was seen"),
        parameter("view", "query", json!({ "enum": ["native", "x1", "raw"] }), "the shape"),
        parameter("types", "query", text(), "only these types, with commas"),
        parameter("deltas", "query", json!({ "enum": ["0", "1"] }), "`0`: only whole messages"),
        parameter("named", "query", json!({ "enum": ["0", "1"] }), "`1`: with `event:` lines"),
        parameter("ticket", "query", text(), "from `POST /ticket`"),
    ]);
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Outrigger adapter", "version": env!("CARGO_PKG_VERSION"), "description": "GET routes on :3100; POST routes on :8788, and on :3100 for its own page." },
        "security": [{ "bearer": [] }, {}],
        "paths": {
            "/stream": stream,
            "/health": get("whether it works", object()),
            "/status": get("what the session does", object()),
            "/capabilities": get("what its runtime can do", object()),
            "/schema/events.json": get("the JSON Schema of an event", json!({ "application/schema+json": {} })),
            "/ticket": { "post": { "summary": "a one-minute ticket for `GET /stream?ticket=`", "responses": { "200": { "description": "a ticket", "content": object() }, "default": problem() } } },
            "/inject": post("give the agent an input", json!({ "$ref": "#/components/schemas/Input" })),
            "/interrupt": post("stop the running turn", json!({ "type": "object" })),
            "/permission/{id}": with_id(post("decide on a `permission.request`", json!({ "type": "object", "required": ["decision"], "properties": { "decision": { "enum": ["allow", "allow_always", "deny"] }, "message": text() } }))),
            "/question/{id}": with_id(post("answer a `question.request`", json!({ "type": "object", "properties": { "answer": text(), "answers": { "type": "array" }, "reject": { "type": "boolean" } } }))),
            "/keepalive": post("somebody is there: the idle time starts again", json!({ "type": "object" })),
            "/shutdown": post("end the session", json!({ "type": "object", "properties": { "summary": text() } })),
        },
        "components": {
            "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer" } },
            "schemas": {
                "Event": event::schema(),
                "Problem": { "type": "object", "required": ["type", "title", "status", "code", "detail"], "properties": { "type": text(), "title": text(), "status": { "type": "integer" }, "code": text(), "detail": text(), "hint": text() } },
                "Input": { "type": "object", "required": ["text"], "properties": {
                    "text": { "type": "string", "maxLength": 65536 },
                    "input_id": { "type": "string", "maxLength": 256, "description": "the same id again delivers nothing; also `event_id`, `request_id`, or the header `Idempotency-Key`" },
                    "mode": { "enum": ["auto", "queue", "steer", "interrupt"] },
                    "sender_id": text(),
                    "attachments": { "type": "array", "items": { "type": "object", "required": ["type", "media_type", "data"], "properties": { "type": { "const": "image" }, "media_type": text(), "data": { "type": "string", "contentEncoding": "base64" } } } },
                } },
            },
        },
    })
}
