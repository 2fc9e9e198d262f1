/** The contract and its cases, as `contract.json` has them; tests/test_editor_contract.py holds it against the node. */

import { readFileSync } from "node:fs";

import { setContract } from "../../web/editor/contract.js";

export const { contract: CONTRACT, cases: CASES } = JSON.parse(readFileSync(new URL("./contract.json", import.meta.url), "utf-8"));
setContract(CONTRACT);
