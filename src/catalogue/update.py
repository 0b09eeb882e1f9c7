#!/usr/bin/env python3
"""Makes prices.tsv from the price table in the `litellm` wheel (PyPI, MIT licence).

usage: pip download --no-deps litellm==VERSION -d DIR && update.py DIR/litellm-*.whl > prices.tsv
"""
import datetime, hashlib, json, re, sys, zipfile

PROVIDERS = {  # litellm's name -> ours
    "anthropic": "anthropic", "openai": "openai", "gemini": "google", "groq": "groq", "mistral": "mistral", "xai": "xai",
    "deepseek": "deepseek", "together_ai": "together", "fireworks_ai": "fireworks", "cerebras": "cerebras",
}
wheel = open(sys.argv[1], "rb").read()
with zipfile.ZipFile(sys.argv[1]) as z:
    table = json.loads(z.read("litellm/model_prices_and_context_window_backup.json"))
version = re.search(r"litellm-([^-]+)-", sys.argv[1]).group(1)
per_million = lambda usd: "" if usd is None else f"{usd * 1e6:.6g}"
ratio = lambda a, b: "" if not a or not b else f"{a / b:.4g}"

whole = lambda n: "" if not n else str(int(n))
factor = lambda v, name: "" if name not in (e := v.get("provider_specific_entry") or {}) else f"{e[name]:.4g}"
# The dearest of the search sizes.
search = lambda v: "" if not (s := v.get("search_context_cost_per_query")) else f"{max(s.values()):.6g}"

rows = {}
for key, v in table.items():
    provider = PROVIDERS.get(v.get("litellm_provider"))
    if not provider or v.get("mode") not in ("chat", "responses", "embedding", "image_generation") or v.get("input_cost_per_token") is None:
        continue
    if v["mode"] == "image_generation" and v.get("output_cost_per_image_token") is None:
        continue
    model = key.split("/", 1)[1] if "/" in key and key.split("/", 1)[0] == v["litellm_provider"] else key
    if not re.fullmatch(r"[A-Za-z0-9._:/@+-]{1,128}", model):
        continue
    base = v["input_cost_per_token"]
    above = sorted(int(m.group(1)) for k in v if (m := re.fullmatch(r"input_cost_per_token_above_(\d+)k_tokens", k)))
    step = f"_above_{above[0]}k_tokens" if above else None
    rows[provider, model] = [
        per_million(base), per_million(v.get("output_cost_per_token") or 0), per_million(v.get("cache_read_input_token_cost")),
        per_million(v.get("cache_creation_input_token_cost")), per_million(v.get("cache_creation_input_token_cost_above_1hr")),
        str(above[0] * 1000) if above else "",
        *([per_million(v.get(n + step)) for n in ("input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost", "cache_creation_input_token_cost")] if step else [""] * 4),
        ratio(v.get("input_cost_per_token_priority"), base), ratio(v.get("input_cost_per_token_flex"), base),
        whole(v.get("max_input_tokens")), whole(v.get("max_output_tokens")),
        *(factor(v, name) for name in ("fast", "us")),
        search(v), per_million(v.get("input_cost_per_image_token")), per_million(v.get("output_cost_per_image_token")),
        v.get("deprecation_date") or "",
    ]
print(f"# Prices in USD per 1,000,000 tokens. Source: litellm {version} (PyPI wheel), sha256 {hashlib.sha256(wheel).hexdigest()}.")
print(f"# Taken {datetime.date.today()}. Copyright (c) 2023 Berri AI, MIT License: permission is granted, free of charge, to use, copy, modify, merge,")
print("# publish, distribute, sublicense and/or sell copies, provided that this notice is kept. Provided \"as is\", without warranty.")
print("# provider\tmodel\tinput\toutput\tcache_read\tcache_write\tcache_write_1h\tabove_tokens\tinput_above\toutput_above\tcache_read_above\tcache_write_above\tpriority_factor\tflex_factor\tmax_input\tmax_output\tfast_factor\tus_factor\tsearch_usd\timage_input\timage_output\tends")
for (p, m), r in sorted(rows.items(), key=lambda kv: (kv[0][0] + "\t" + kv[0][1]).encode()):
    print("\t".join([p, m, *r]))
