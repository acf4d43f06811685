import { describe, expect, test } from "vitest";
import type { Matcher, Silence } from "../../api/alertmanager";
import {
  type Draft,
  draftOf,
  durationText,
  endOf,
  formatMatchers,
  newDraft,
  oldLink,
  operatorOf,
  parseMatchers,
  postable,
  problemOf,
  silenceHref,
  sortSilences,
} from "./silences";

const now = Date.UTC(2026, 0, 31, 12);
const hour = 3_600_000;

function silence(id: string, state: Silence["status"]["state"], from: number, to: number): Silence {
  return {
    id,
    status: { state },
    updatedAt: "",
    startsAt: new Date(from).toISOString(),
    endsAt: new Date(to).toISOString(),
    createdBy: "ann",
    comment: "why",
    matchers: [{ name: "a", value: "b", isRegex: false, isEqual: true }],
  };
}

describe("matchers", () => {
  test.each([
    ['{a="b"}', '{a="b"}'],
    ['a="b", c!="d",e=~"f.*", g!~"h|i",', '{a="b", c!="d", e=~"f.*", g!~"h|i"}'],
    ["{alertname=Down,job=~x.+}", '{alertname="Down", job=~"x.+"}'],
    ['{a="with, comma } and \\"quote\\" \\\\ and\\n"}', '{a="with, comma } and \\"quote\\" \\\\ and\\n"}'],
    ['{"a.b"="c", a=""}', '{"a.b"="c", a=""}'],
    ["{}", "{}"],
  ])("%s is read", (text, want) => expect(formatMatchers(parseMatchers(text)!)).toBe(want));
  test.each(['{a="b"', "a", '{a="b" c="d"}', '{="b"}', "{a=b}c}"])("%s is none", (text) => expect(parseMatchers(text)).toBeNull());
  test("what an old server leaves out is equality", () => {
    expect(operatorOf({ name: "a", value: "b", isRegex: true } as Matcher)).toBe("=~");
  });
  test("an alert leads to a form for it", () => {
    const labels = { job: 'x"y', alertname: "Down", "a.b": "1" };
    const href = silenceHref(labels);
    const draft = newDraft(parseMatchers(new URLSearchParams(href.split("?")[1]).get("new")!)!, "ann");
    expect(Object.fromEntries(draft.matchers.map((m) => [m.name, m.value]))).toEqual(labels);
    expect(draft.matchers[0]!.name).toBe("alertname");
    expect(problemOf(draft, now)).toBe(""); // two clicks
  });
});

describe("the form", () => {
  const draft: Draft = newDraft(parseMatchers('{alertname="Down"}')!, "ann");
  test("ends after its duration, from now or a later start", () => {
    expect(endOf(draft, now)).toBe(now + 2 * hour);
    expect(endOf({ ...draft, startsAt: now + hour }, now)).toBe(now + 3 * hour);
    expect(endOf({ ...draft, startsAt: now - hour }, now)).toBe(now + 2 * hour);
    expect(endOf({ ...draft, endsAt: now + 5 }, now)).toBe(now + 5);
    expect(endOf({ ...draft, duration: null }, now)).toBeNull();
    expect(durationText({ ...draft, endsAt: now + hour + 20_000 }, now)).toBe("1h");
    expect(durationText({ ...draft, startsAt: Number.NaN }, now)).toBe("2h");
  });
  test.each<[Partial<Draft>, string]>([
    [{}, ""],
    [{ matchers: [] }, "Name at least one label."],
    [{ matchers: [...draft.matchers, { name: " ", value: "", isRegex: false, isEqual: true }] }, "A matcher has no label name."],
    [{ duration: null }, "Write the duration as 30m, 4h or 1d12h."],
    [{ startsAt: Number.NaN }, "Write times as 2026-01-31 14:05."],
    [{ endsAt: now - 1 }, "The end is over already."],
    [{ startsAt: now + hour, endsAt: now + 1 }, "The end is before the start."],
    [{ createdBy: " " }, "Say who you are."],
    [{ comment: "" }, "Say why, in the comment."],
  ])("%o lacks what it says", (change, want) => expect(problemOf({ ...draft, ...change }, now)).toBe(want));
  test("is sent as the API takes it", () => {
    expect(postable(draft, now)).toEqual({
      matchers: [{ name: "alertname", value: "Down", isRegex: false, isEqual: true }],
      startsAt: "2026-01-31T12:00:00.000Z",
      endsAt: "2026-01-31T14:00:00.000Z",
      createdBy: "ann",
      comment: "Silenced from the alert Down",
    });
  });
  test("changes a silence, and makes one like what is over", () => {
    expect(draftOf(silence("x", "active", now - hour, now + hour), "bob")).toMatchObject({ id: "x", createdBy: "ann", endsAt: now + hour });
    const again = draftOf(silence("x", "expired", now - 5 * hour, now - hour), "bob");
    expect(again).toMatchObject({ createdBy: "bob", startsAt: null, endsAt: null, duration: 4 * hour });
    expect(again.id).toBeUndefined();
    expect(draftOf(silence("x", "expired", now - 9000, now), "bob").duration).toBe(2 * hour);
  });
});

test("what is in force is first, and what ends next", () => {
  const all = [
    silence("old", "expired", now - 9 * hour, now - 8 * hour),
    silence("late", "active", now - hour, now + 9 * hour),
    silence("recent", "expired", now - 9 * hour, now - hour),
    silence("next", "pending", now + hour, now + 2 * hour),
    silence("soon", "active", now - hour, now + hour),
  ];
  expect(sortSilences(all).map((s) => s.id)).toEqual(["soon", "late", "next", "recent", "old"]);
});

test.each([
  ["#/silences", "/silences"],
  ["#/silences/6b1f-2", "/silences?id=6b1f-2"],
  ["#/silences/6b1f-2/edit", "/silences?edit=6b1f-2"],
  ["#/silences/new", "/silences?new=%7B%7D"],
  ["#/silences/new?filter=%7Ba%3D%22b%22%7D", "/silences?new=%7Ba%3D%22b%22%7D"],
  ["#/alerts?silenced=false&filter=%7Balertname%3D%22Down%22%7D", "/alerts?search=alertname%3DDown"],
  ["#/alerts", "/alerts"],
  ["#/status", ""],
  ["#somewhere", ""],
  ["", ""],
])("Alertmanager's %s leads to %s", (hash, want) => expect(oldLink(hash)).toBe(want));
