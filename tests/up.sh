#!/bin/sh
# `make up`: installs the pinned CLI, starts everything on this machine with a first turn, and
# stays until Ctrl-C. UP_CONFIG names a sidecar.yaml with real providers, UP_PORT the first of
# five ports; UP_FRESH=1 begins another session; UP_ONCE=1 waits for two turns and ends.
set -eu
cd "$(dirname "$0")/.."
bin=target/release/outrigger
dir=.outrigger
port=${UP_PORT:-3100}
version=$(sed -n 's/^    verified: "\(.*\)",$/\1/p' src/adapter/runtime/opencode/mod.rs)
cli=$dir/cli/opencode-$version
if [ ! -x "$cli/node_modules/.bin/opencode" ]; then
    echo "installing opencode $version into $cli"
    mkdir -p "$cli"
    [ -f "$cli/package.json" ] || echo '{"private":true}' > "$cli/package.json"
    npm install --prefix "$cli" --no-save --no-audit --no-fund --loglevel=error "opencode-ai@$version"
fi
set -- up --dir "$dir" --port "$port" --program "$cli/node_modules/.bin/opencode"
# A session that goes on has had its first prompt.
if [ -n "${UP_FRESH:-}" ] || [ -n "${UP_ONCE:-}" ] || ! [ -d "$dir/session/events" ]; then
    set -- "$@" --prompt "Look around: which files are here?"
fi
[ -z "${UP_FRESH:-}" ] || set -- "$@" --fresh
[ -z "${UP_CONFIG:-}" ] || set -- "$@" --sidecar-config "$UP_CONFIG"
[ -n "${UP_ONCE:-}" ] || exec "$bin" "$@"

"$bin" "$@" &
up=$!
trap 'kill $up 2>/dev/null; wait $up 2>/dev/null' EXIT
node -e '
const [url, began] = [`http://localhost:${process.argv[1]}`, Date.now()];
const post = (text) => fetch(`${url}/inject`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ text }) });
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
setTimeout(() => { console.error("no two turns within two minutes"); process.exit(1); }, 120_000).unref();
let turns = 0, last = null;
for (;;) {
  // An earlier session in this directory goes on; its turns are not these.
  last ??= await fetch(`${url}/status`).then((r) => r.json()).then((s) => s.sequence, () => null);
  const response = await fetch(`${url}/stream?since=${last}`).catch(() => null);
  if (!response || last === null) { await wait(50); continue; }
  let text = "";
  for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
    text += piece;
    const lines = text.split("\n");
    text = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      const event = JSON.parse(line.slice(6));
      last = event.sequence;
      if (event.type === "tool.result") console.log(`tool: ${event.payload.output.trim()} (exit ${event.payload.exit_code})`);
      if (event.type === "error") { console.error(event.payload.message); process.exit(1); }
      if (event.type !== "turn.end") continue;
      console.log(`turn ${event.payload.turn} after ${Date.now() - began} ms: ${event.payload.final_text}`);
      if (++turns === 2) process.exit(0);
      await post("rehearse:text and now?");
    }
  }
}' --input-type=module "$port"
