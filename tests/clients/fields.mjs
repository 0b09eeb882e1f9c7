// Prints the fields of a request, as the official SDKs type it, that could decide something:
// `provider<TAB>Type.property<TAB>kind`, each once. ../fixtures/fields.tsv judges them.

import { realpathSync } from 'node:fs';
import { join, sep } from 'node:path';
import ts from 'typescript';
import { modules } from './kit.mjs';

/** The methods whose first parameter becomes the body of a request that the sidecar offers. */
const SDKS = [
  ['anthropic', '@anthropic-ai/sdk', 'Anthropic', 'messages.create messages.countTokens beta.messages.create beta.messages.countTokens'],
  ['openai', 'openai', 'OpenAI', 'responses.create responses.compact responses.inputTokens.count chat.completions.create completions.create embeddings.create'],
  ['openai', 'openai', 'OpenAI', 'beta.responses.create beta.responses.compact beta.responses.inputTokens.count'],
  ['google', '@google/genai', 'GoogleGenAI', 'models.generateContent models.generateContentStream models.countTokens models.embedContent interactions.create'],
];

const WORDS = 'model|agent|server|connector|tunnel|container|skill|conversation|thread|prompt|preset|plugin|endpoint|webhook';
/** In comments these words are everywhere, in names they tell. */
const IN_NAMES =
  'mcp|corpus|corpora|environment|repositor|secret|credential|auth|workspace|account|project|organization|profile|session|deployment|fallback|' +
  'background|reference|memory|bucket|snapshot|engine|header|transport|network|domain|source|api_?key|continuation|program|routing|beta';
/** Any part of a name, whatever is joined to it. */
const NAME = new RegExp(`${WORDS}|${IN_NAMES}|url|uri|file|cach|stor(e|age)|ids?$|(^|_)ids?_|I[dD]s?(?![a-z])`, 'i');
/** Whole words of a comment, and parts of a value such as `item_reference`. */
const PROSE = new RegExp(`(\\b|_)(${WORDS}|url|uri|file|id|store)s?(\\b|_)|\\b(caches?|cached|caching|stored|storage)\\b`, 'i');
/** Where tools stand. A new kind of tool is news whatever its fields are called. */
const TOOLS = /^(tools?|definition)$/;

const OPTIONS = { module: ts.ModuleKind.NodeNext, moduleResolution: ts.ModuleResolutionKind.NodeNext, target: ts.ScriptTarget.ESNext, strict: true, skipLibCheck: true, types: [] };

/** All such fields of the SDKs in this `node_modules`, sorted. */
export function fields(directory) {
  const found = new Map();
  for (const [provider, name, client, methods] of SDKS) {
    for (const field of new Sdk(directory, name).fields(client, methods.split(' '))) found.set(`${provider}\t${field.name}`, { provider, ...field });
  }
  return [...found.keys()].sort().map((key) => found.get(key));
}

class Sdk {
  #dir;
  #checker;
  #exports;
  #seen = new Set();
  #found = new Map();

  constructor(directory, name) {
    this.#dir = realpathSync(join(directory, name)) + sep;
    const entry = ts.resolveModuleName(name, join(directory, 'entry.mts'), OPTIONS, ts.createCompilerHost(OPTIONS)).resolvedModule?.resolvedFileName;
    if (!entry) throw new Error(`${name} has no types`);
    const program = ts.createProgram([entry], OPTIONS);
    this.#checker = program.getTypeChecker();
    this.#exports = this.#checker.getExportsOfModule(this.#checker.getSymbolAtLocation(program.getSourceFile(entry)));
  }

  fields(client, methods) {
    const symbol = this.#exports.find((e) => e.name === client);
    const type = this.#checker.getDeclaredTypeOfSymbol(symbol.flags & ts.SymbolFlags.Alias ? this.#checker.getAliasedSymbol(symbol) : symbol);
    for (const method of methods) {
      const signatures = this.#at(type, method).getCallSignatures();
      if (!signatures.length) throw new Error(`${client} has no method ${method}`);
      for (const signature of signatures) this.#walk(this.#checker.getTypeOfSymbol(signature.parameters[0]));
    }
    return this.#found.values();
  }

  #at(type, path) {
    for (const part of path.split('.')) {
      const property = this.#checker.getPropertyOfType(type, part);
      if (!property) throw new Error(`the SDK has no ${path}`);
      type = this.#checker.getTypeOfSymbol(property);
    }
    return type;
  }

  /** Each type once: what holds itself ends here. */
  #walk(type) {
    if (this.#seen.has(type)) return;
    this.#seen.add(type);
    const parts = this.#parts(type);
    if (parts) return parts.forEach((t) => this.#walk(t));
    if (!(type.flags & (ts.TypeFlags.Object | ts.TypeFlags.Intersection)) || type.getCallSignatures().length) return;
    for (const { type: value } of this.#checker.getIndexInfosOfType(type)) this.#walk(value);
    for (const property of this.#checker.getPropertiesOfType(type)) if (this.#declarations(property).length) this.#property(property);
  }

  /** What a union or a list is made of. */
  #parts(type) {
    if (type.isUnion()) return type.types;
    return this.#checker.isArrayType(type) || this.#checker.isTupleType(type) ? this.#checker.getTypeArguments(type) : undefined;
  }

  #property(symbol) {
    const type = this.#checker.getTypeOfSymbol(symbol);
    const values = (this.#parts(type) ?? [type]).filter((t) => t.isStringLiteral()).map((t) => t.value);
    if (NAME.test(symbol.name) || [this.#comment(symbol), ...values].some((text) => PROSE.test(text))) this.#add(symbol);
    if (TOOLS.test(symbol.name)) this.#kinds(type);
    this.#walk(type);
  }

  /** A tool says what it is by its `type`, or by the one key that it has. */
  #kinds(type) {
    const parts = this.#parts(type);
    if (parts) return parts.forEach((t) => this.#kinds(t));
    const properties = this.#checker.getPropertiesOfType(type);
    const says = properties.filter((p) => p.name === 'type');
    for (const property of says.length ? says : properties) this.#add(property);
  }

  /** The whole comment: some SDKs put its second sentence behind `@remarks`. */
  #comment(symbol) {
    return [symbol.getDocumentationComment(this.#checker), ...symbol.getJsDocTags(this.#checker).map((t) => t.text)].map(ts.displayPartsToString).join(' ');
  }

  #add(symbol) {
    const kind = this.#checker.typeToString(this.#checker.getTypeOfSymbol(symbol)).replace(/\s+/g, ' ');
    for (const declaration of this.#declarations(symbol)) {
      const name = `${owner(declaration)}.${symbol.name}`;
      this.#found.set(name, { name, kind });
    }
  }

  /** Where the SDK itself declares it: not a string's `length`, not a method. */
  #declarations(symbol) {
    return (symbol.declarations ?? []).filter((d) => d.getSourceFile().fileName.startsWith(this.#dir) && !ts.isMethodDeclaration(d) && !ts.isMethodSignature(d));
  }
}

/** The type that a property is declared in, with the namespaces and the properties around it. */
function owner(declaration) {
  const names = [];
  for (let node = declaration.parent; !ts.isSourceFile(node); node = node.parent) if (node.name) names.unshift(node.name.getText());
  return names.join('.');
}

if (process.argv[1] === import.meta.filename) {
  for (const { provider, name, kind } of fields(process.argv[2] ?? modules)) console.log([provider, name, kind].join('\t'));
}
