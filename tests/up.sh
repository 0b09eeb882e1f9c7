#!/bin/sh
# Starts the rehearsal and the sidecar on this machine, sends one request through both, and
# stays until Ctrl-C. docs/operators.md says how to use real providers.
set -eu
cd "$(dirname "$0")/.."
bin=target/release/outrigger
dir=.outrigger
port=${UP_PORT:-11432}
admin=$((port + 1))
provider=$((port + 2))
mkdir -p "$dir/secrets/rehearsal"
[ -s "$dir/secrets/rehearsal/key" ] || echo "sk-rehearsal-not-a-real-key" > "$dir/secrets/rehearsal/key"
cat > "$dir/sidecar.yaml" <<YAML
listen: 127.0.0.1:$port
admin: 127.0.0.1:$admin
secretsDir: $dir/secrets
audit: { file: $dir/audit.jsonl }
log: { format: text }
aiProviders:
  anthropic: { baseUrl: "http://127.0.0.1:$provider", secretRef: { name: rehearsal, key: key } }
  openai: { baseUrl: "http://127.0.0.1:$provider/v1", secretRef: { name: rehearsal, key: key } }
  google: { baseUrl: "http://127.0.0.1:$provider", secretRef: { name: rehearsal, key: key } }
permissionGrants:
  - scope: ai.anthropic:claude-*
  - scope: ai.openai:gpt-*
  - scope: ai.google:gemini-*
YAML
"$bin" rehearse --listen "127.0.0.1:$provider" &
rehearsal=$!
"$bin" sidecar --config "$dir/sidecar.yaml" &
sidecar=$!
trap 'kill $sidecar $rehearsal 2>/dev/null; wait $sidecar $rehearsal 2>/dev/null; exit 0' INT TERM EXIT
tries=0
until "$bin" healthcheck --address "127.0.0.1:$admin" 2>/dev/null; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || { echo "the sidecar does not become ready" >&2; exit 1; }
    sleep 0.05
done
echo
echo "A streamed answer, without a key, through sidecar and rehearsal:"
echo
node -e '
const url = `http://localhost:${process.argv[1]}/v1/messages`;
const body = { model: "claude-sonnet-4-5", max_tokens: 100, stream: true, messages: [{ role: "user", content: "rehearse:slow" }] };
fetch(url, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) }).then(async (r) => {
  if (!r.ok) throw new Error(await r.text());
  const decoder = new TextDecoder();
  for await (const piece of r.body) for (const line of decoder.decode(piece, { stream: true }).split("\n"))
    if (line.startsWith("data: ")) process.stdout.write(JSON.parse(line.slice(6)).delta?.text ?? "");
  console.log("\n");
});' "$port"
tries=0
until [ -s "$dir/audit.jsonl" ]; do tries=$((tries + 1)); [ "$tries" -lt 100 ]; sleep 0.05; done
echo "Its record:"
tail -n 1 "$dir/audit.jsonl"
cat <<TEXT

A model that is not granted:  curl -s localhost:$port/v1/messages -H 'content-type: application/json' -d '{"model":"gpt-6"}'
Claude Code:                  ANTHROPIC_BASE_URL=http://localhost:$port ANTHROPIC_AUTH_TOKEN=dummy claude
Metrics:                      curl -s localhost:$admin/metrics
Audit, configuration:         $dir/audit.jsonl, $dir/sidecar.yaml (grants are followed while it runs)

Ctrl-C ends it.
TEXT
[ -z "${UP_ONCE:-}" ] || exit 0
wait $sidecar
