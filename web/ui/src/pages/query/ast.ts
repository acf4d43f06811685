// The tree of an expression as /api/v1/parse_query answers it, and back to text: every part can be run.

import { formatDuration } from "../../lib/duration";
import { quoteLabelName, quoteString } from "../../lib/format";

interface Matcher {
  name: string;
  type: "=" | "!=" | "=~" | "!~";
  value: string;
}
interface Offset {
  offset: number;
  timestamp: number | null;
  startOrEnd: "start" | "end" | null;
  anchored?: boolean;
  smoothed?: boolean;
}
export interface Matching {
  card: "one-to-one" | "many-to-one" | "one-to-many" | "many-to-many";
  labels: string[];
  on: boolean;
  include: string[];
}
export type Node =
  | ({ type: "vectorSelector"; name: string; matchers: Matcher[] } & Offset)
  | ({ type: "matrixSelector"; name: string; matchers: Matcher[]; range: number } & Offset)
  | ({ type: "subquery"; expr: Node; range: number; step: number } & Offset)
  | { type: "aggregation"; expr: Node; op: string; param: Node | null; grouping: string[]; without: boolean }
  | { type: "binaryExpr"; op: string; lhs: Node; rhs: Node; bool: boolean; matching: Matching | null }
  | { type: "call"; func: { name: string; returnType: string; variadic: number }; args: Node[] }
  | { type: "numberLiteral"; val: string }
  | { type: "stringLiteral"; val: string }
  | { type: "parenExpr"; expr: Node }
  | { type: "unaryExpr"; op: string; expr: Node }
  | { type: "placeholder"; children: Node[] };

export function children(n: Node): Node[] {
  switch (n.type) {
    case "aggregation":
      return n.param ? [n.param, n.expr] : [n.expr];
    case "binaryExpr":
      return [n.lhs, n.rhs];
    case "call":
      return n.args;
    case "subquery":
    case "parenExpr":
    case "unaryExpr":
      return [n.expr];
    case "placeholder":
      return n.children;
    default:
      return [];
  }
}

/** What the node is by itself, in few words. */
export function nodeTitle(n: Node): string {
  switch (n.type) {
    case "aggregation":
      return `${n.op}${grouping(n)}`;
    case "binaryExpr":
      return `${n.op}${n.bool ? " bool" : ""}${matching(n.matching)}`;
    case "call":
      return `${n.func.name}()`;
    case "parenExpr":
      return "( )";
    case "unaryExpr":
      return n.op;
    case "subquery":
      return `subquery ${span(n.range, n.step)}${suffix(n)}`;
    case "placeholder":
      return "…";
    default:
      return serialize(n);
  }
}

function grouping(n: { grouping: string[]; without: boolean }): string {
  if (n.grouping.length === 0 && !n.without) return "";
  return ` ${n.without ? "without" : "by"} (${n.grouping.map(quoteLabelName).join(", ")})`;
}

function matching(m: Matching | null): string {
  if (!m) return "";
  let out = "";
  if (m.on || m.labels.length > 0) out = ` ${m.on ? "on" : "ignoring"} (${m.labels.map(quoteLabelName).join(", ")})`;
  if (m.card === "many-to-one" || m.card === "one-to-many") {
    out += ` ${m.card === "many-to-one" ? "group_left" : "group_right"} (${m.include.map(quoteLabelName).join(", ")})`;
  }
  return out;
}

function selector(n: { name: string; matchers: Matcher[] }): string {
  const matchers = n.matchers.filter((m) => !(m.name === "__name__" && m.type === "=" && m.value === n.name));
  const bare = /^[a-zA-Z_:][a-zA-Z0-9_:]*$/.test(n.name);
  const parts = matchers.map((m) => `${quoteLabelName(m.name)}${m.type}${quoteString(m.value)}`);
  if (n.name !== "" && !bare) parts.unshift(quoteString(n.name));
  return `${bare ? n.name : ""}${parts.length > 0 || n.name === "" ? `{${parts.join(", ")}}` : ""}`;
}

function span(range: number, step: number): string {
  return `[${formatDuration(range)}:${step > 0 ? formatDuration(step) : ""}]`;
}

function suffix(n: Offset): string {
  let out = "";
  if (n.anchored) out += " anchored";
  if (n.smoothed) out += " smoothed";
  if (n.timestamp !== null && n.timestamp !== undefined) out += ` @ ${n.timestamp / 1000}`;
  else if (n.startOrEnd) out += ` @ ${n.startOrEnd}()`;
  if (n.offset) out += ` offset ${formatDuration(n.offset)}`;
  return out;
}

export function serialize(n: Node): string {
  switch (n.type) {
    case "vectorSelector":
      return selector(n) + suffix(n);
    case "matrixSelector":
      return `${selector(n)}[${formatDuration(n.range)}]${suffix(n)}`;
    case "subquery":
      return `${serialize(n.expr)}${span(n.range, n.step)}${suffix(n)}`;
    case "aggregation":
      return `${n.op}${grouping(n)} (${n.param ? `${serialize(n.param)}, ` : ""}${serialize(n.expr)})`;
    case "binaryExpr":
      return `${serialize(n.lhs)} ${n.op}${n.bool ? " bool" : ""}${matching(n.matching)} ${serialize(n.rhs)}`;
    case "call":
      return `${n.func.name}(${n.args.map(serialize).join(", ")})`;
    case "numberLiteral":
      return n.val;
    case "stringLiteral":
      return quoteString(n.val);
    case "parenExpr":
      return `(${serialize(n.expr)})`;
    case "unaryExpr":
      return `${n.op}${serialize(n.expr)}`;
    case "placeholder":
      return "";
  }
}

/** What counts the series of a node; null where there are none to count. */
export function countExpr(n: Node): string | null {
  switch (n.type) {
    case "numberLiteral":
    case "stringLiteral":
    case "placeholder":
      return null;
    case "parenExpr":
    case "unaryExpr":
      return countExpr(n.expr);
    case "matrixSelector":
    case "subquery":
      return `count(present_over_time(${serialize(n)}))`;
    case "call":
      return n.func.returnType === "vector" ? `count(${serialize(n)})` : null;
    case "binaryExpr":
      return countExpr(n.lhs) === null && countExpr(n.rhs) === null ? null : `count(${serialize(n)})`;
    default:
      return `count(${serialize(n)})`;
  }
}

/** One sentence about what the node does. */
export function explain(n: Node, functionDoc?: string): string {
  const at = "offset" in n && (n.offset || n.timestamp || n.startOrEnd) ? ", taken at another time" : "";
  switch (n.type) {
    case "vectorSelector":
      return `The latest sample of each series that matches${at}.`;
    case "matrixSelector":
      return `The samples of the last ${formatDuration(n.range)} of each series that matches${at}.`;
    case "subquery":
      return `Evaluates what is inside over the last ${formatDuration(n.range)}, every ${n.step > 0 ? formatDuration(n.step) : "evaluation interval"}${at}.`;
    case "aggregation":
      return n.without
        ? `${n.op} over series that differ only in ${n.grouping.join(", ") || "nothing"}; all other labels stay.`
        : n.grouping.length > 0
          ? `${n.op} over series with the same ${n.grouping.join(", ")}; other labels go.`
          : `${n.op} over everything, into one series without labels.`;
    case "call":
      return functionDoc ? `${functionDoc}.` : `The function ${n.func.name}.`;
    case "binaryExpr": {
      const m = n.matching;
      if (!m) return `${n.op} with a number, for each series.`;
      if (m.card === "many-to-many")
        return `Set operation: ${n.op === "and" ? "series on the left that have a match on the right" : n.op === "or" ? "series on the left, and those on the right without a match" : "series on the left without a match on the right"}, by ${labelsOf(m)}.`;
      const cards = {
        "one-to-one": "one series on each side",
        "many-to-one": "many on the left with one on the right",
        "one-to-many": "one on the left with many on the right",
      };
      return `Matches ${cards[m.card]}, by ${labelsOf(m)}.`;
    }
    case "numberLiteral":
      return "A number.";
    case "stringLiteral":
      return "A text.";
    case "parenExpr":
      return "What is in parentheses comes first.";
    case "unaryExpr":
      return n.op === "-" ? "The negative of each value." : "The value as it is.";
    case "placeholder":
      return "";
  }
}

function labelsOf(m: Matching): string {
  if (m.on) return m.labels.length > 0 ? m.labels.join(", ") : "nothing, so that there can be one match in all";
  return m.labels.length > 0 ? `all labels but ${m.labels.join(", ")}` : "all labels";
}
