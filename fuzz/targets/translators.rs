//! Lines of any content, to every runtime's translator, between inputs and interrupts: no panic,
//! and the rules of a stream.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use libfuzzer_sys::fuzz_target;
use outrigger::adapter::inbox::Input;
use outrigger::adapter::lifecycle::Lifecycle;
use outrigger::adapter::runtime::action::{Action, CallPurpose, CallReply};
use outrigger::adapter::runtime::{LaunchContext, Permissions, registry};
use outrigger::event::Payload;

fuzz_target!(|data: &[u8]| {
    let setting = LaunchContext {
        session_id: "s".into(),
        model: "anthropic/m".into(),
        sidecar: "http://127.0.0.1:1".into(),
        key: "k".into(),
        workdir: "/".into(),
        permissions: Permissions::Ask,
        allowed_tools: Vec::new(),
        mcp: BTreeMap::new(),
        subagents: true,
        interactive: true,
        home: "/home".into(),
        user_config: Some("/config".into()),
        resume: None,
        random: "0123456789abcdef".repeat(4),
    };
    let input = Input::new("input".into(), "t".into());
    for runtime in registry::ALL {
        let (mut translator, mut actions) = ((runtime.translator)(&setting), Vec::new());
        for (i, line) in data.split(|b| *b == b'\n').enumerate() {
            // What else can come.
            match i % 7 {
                1 => translator.deliver(&input, "native", &mut actions),
                3 => translator.interrupt(&mut actions),
                4 => translator.read_stderr(&String::from_utf8_lossy(line), &mut actions),
                5 => translator.wake(&mut actions),
                6 => translator.reply(
                    CallPurpose::Look("input".into()),
                    CallReply::Answer {
                        status: 200,
                        body: line.to_vec(),
                    },
                    &mut actions,
                ),
                _ => {}
            }
            translator.read(line, &mut actions);
        }
        translator.close(&mut actions);
        let (mut lifecycle, mut said) = (Lifecycle::new("s"), Vec::new());
        for action in actions {
            if let Action::Event(payload) = action {
                lifecycle.admit(0, payload, &mut said);
            }
        }
        let (mut turn, mut tools) = (None, BTreeSet::new());
        for (payload, _) in said {
            match payload {
                Payload::TurnStart(start) => assert_eq!(turn.replace(start.turn), None),
                Payload::TurnEnd(end) => assert!(turn.take() == Some(end.turn) && tools.is_empty()),
                Payload::ToolUse(tool) => assert!(tools.insert(tool.tool_use_id)),
                Payload::ToolResult(result) => assert!(tools.remove(&result.tool_use_id)),
                _ => {}
            }
        }
        assert_eq!(turn, None);
    }
});
