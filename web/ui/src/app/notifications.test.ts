import { expect, test } from "vitest";
import { told } from "./notifications";

test("what is told stays until it is taken back", () => {
  const n = (text: string, active = true, date = "1") => ({ text, active, date });
  let list = told([], n("reload failed"));
  list = told(list, n("stopping"));
  expect(list.map((x) => x.text)).toEqual(["reload failed", "stopping"]);
  list = told(list, n("reload failed", true, "2"));
  expect(list.map((x) => x.date)).toEqual(["2", "1"]);
  list = told(list, n("reload failed", false));
  expect(list.map((x) => x.text)).toEqual(["stopping"]);
  expect(told(list, n("unknown", false))).toBe(list);
});
