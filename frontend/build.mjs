// Copies the pinned third-party files into static/vendor under names that carry a hash of their
// content, each beside a .gz and a .br, and writes manifest.json, by which the server finds them.
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";

const here = dirname(fileURLToPath(import.meta.url));
const modules = join(here, "node_modules");
const vendor = join(here, "static", "vendor");

const FILES = {
  "htmx.js": "htmx.org/dist/htmx.min.js",
  "plotly.js": "plotly.js-basic-dist-min/plotly-basic.min.js",
};
const LICENSES = {
  "htmx.LICENSE.txt": "htmx.org/LICENSE",
  "plotly.LICENSE.txt": "plotly.js-basic-dist-min/LICENSE",
};

function hashed(name, body) {
  const hash = createHash("sha256").update(body).digest("hex").slice(0, 12);
  return name.replace(/\.(\w+)$/, `.${hash}.$1`);
}

function brotli(body) {
  return brotliCompressSync(body, {
    params: {
      [constants.BROTLI_PARAM_QUALITY]: constants.BROTLI_MAX_QUALITY,
      [constants.BROTLI_PARAM_SIZE_HINT]: body.length,
    },
  });
}

mkdirSync(vendor, { recursive: true });
for (const old of readdirSync(vendor)) rmSync(join(vendor, old));

const manifest = {};
for (const [name, source] of Object.entries(FILES)) {
  // A source map is not shipped, so its mention would only be a failed request.
  const text = readFileSync(join(modules, source), "utf8").replace(/\n?\/\/# sourceMappingURL=.*\s*$/, "\n");
  const body = Buffer.from(text);
  const target = hashed(name, body);
  writeFileSync(join(vendor, target), body);
  writeFileSync(join(vendor, `${target}.gz`), gzipSync(body, { level: 9 }));
  writeFileSync(join(vendor, `${target}.br`), brotli(body));
  manifest[name] = target;
  console.log(`static/vendor/${target}  ${body.length} bytes`);
}
for (const [name, source] of Object.entries(LICENSES)) {
  copyFileSync(join(modules, source), join(vendor, name));
}
writeFileSync(join(vendor, "manifest.json"), `${JSON.stringify(manifest, null, 2)}\n`);
