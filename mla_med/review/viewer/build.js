// src/ -> ../static/viewer.js, viewer-planes.js, viewer.css and the licences of what is in them.
// `npm ci && npm run build`; the same sources give the same bytes.

import { readFileSync, writeFileSync, copyFileSync } from "node:fs";
import { build } from "esbuild";

const OUT = "../static";
// Zarr is read by NiiVue and never by us: without it there is no WebAssembly in the bundle, and half its size.
const WITHOUT = { zarrita: "./src/nothing.js" };

const common = { bundle: true, minify: true, format: "esm", target: "es2022", legalComments: "none", logLevel: "warning" };
await build({ ...common, entryPoints: ["src/main.js"], outfile: `${OUT}/viewer.js`, external: ["./viewer-planes.js"] });
const { metafile } = await build({
  ...common,
  entryPoints: ["src/planes.js"],
  outfile: `${OUT}/viewer-planes.js`,
  alias: WITHOUT,
  metafile: true,
});
copyFileSync("src/viewer.css", `${OUT}/viewer.css`);

const packages = new Set(
  Object.keys(metafile.inputs)
    .filter((path) => path.includes("node_modules/"))
    .map((path) => path.split("node_modules/").at(-1).match(/^(@[^/]+\/)?[^/]+/)[0]),
);
const texts = [...packages].sort().map((name) => {
  const about = JSON.parse(readFileSync(`node_modules/${name}/package.json`, "utf8"));
  return `${name} ${about.version} (${about.license})\n\n${licence(name)}`;
});
writeFileSync(`${OUT}/viewer-licences.txt`, `Of what is bundled in viewer-planes.js.\n\n${texts.join(`\n${"-".repeat(80)}\n\n`)}`);

function licence(name) {
  for (const file of ["LICENSE", "LICENSE.md", "LICENSE.txt", "license", "LICENCE"]) {
    try {
      return readFileSync(`node_modules/${name}/${file}`, "utf8");
    } catch {
      continue;
    }
  }
  return readFileSync(`licences/${name.replace("/", "_")}.txt`, "utf8");
}
