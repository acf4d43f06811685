import { ensureSyntaxTree, LRLanguage } from "@codemirror/language";
import { EditorState } from "@codemirror/state";
import { parser } from "@prometheus-io/lezer-promql";
import { expect, test } from "vitest";
import { pointedAt } from "./hover";

const text = 'sum by (job) (rate(http_requests_total{code="500", rate="sum"}[5m] offset 1h)) / on (job) group_left up';
const state = EditorState.create({ doc: text, extensions: LRLanguage.define({ parser }) });
ensureSyntaxTree(state, text.length, 5000);
const at = (word: string, after = 0) => pointedAt(state, text.indexOf(word, after) + 1, 1);

test("words of PromQL are explained", () => {
  expect(at("sum")).toMatchObject({ from: 0, to: 3, name: "sum", help: expect.stringMatching(/sum/i) });
  expect(at("rate")).toMatchObject({ name: "rate", help: expect.stringMatching(/per-second/i) });
  expect(at("by")?.help).toMatch(/label/);
  expect(at("group_left")?.help).toMatch(/many-to-one/);
});

test("metrics are what the server knows of", () => {
  expect(at("http_requests_total")).toMatchObject({ name: "http_requests_total", help: "" });
  expect(at("up", text.indexOf("group_left") + 5)).toMatchObject({ name: "up", help: "" });
});

test("labels, values and numbers are nothing that has help", () => {
  for (const word of ["job", "code", "500", 'rate="', '"sum', "5m", "1h", "{"]) expect(at(word), word).toBeNull();
});
