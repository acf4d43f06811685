import { expect, test } from "vitest";
import { eventKind, eventKinds, eventText, type MeshEvent } from "./events";

const event = (event: string, level = "info"): MeshEvent => ({ time: "2026-01-01T00:00:00Z", event, level, text: "it happened" });

test("a death looks worse than a warning", () => {
  expect(eventKind(event("died", "warn"))).toBe("bad");
  expect(eventKind(event("conflict", "error"))).toBe("bad");
  expect(eventKind(event("refused", "warn"))).toBe("warn");
  expect(eventKind(event("back"))).toBe("well");
  expect(eventKind(event("left"))).toBe("quiet");
});

test("the filter has the kinds that there are, as the newest of each looks", () => {
  expect(eventKinds([event("skew"), event("died", "warn"), event("skew", "warn")])).toEqual([
    { value: "died", label: "died", kind: "bad" },
    { value: "skew", label: "skew", kind: "quiet" },
  ]);
});

test("details are searched, too", () => {
  expect(eventText({ ...event("refused"), member: "b", details: { reason: "key" } })).toBe("refused b it happened reason=key");
});
