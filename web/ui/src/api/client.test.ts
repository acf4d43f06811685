import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { ApiError, apiURL, basePath, distinct, requestJSON, requestPrometheus, requestText } from "./client";

// A real server below a path; the page is there too, as far as the browser's environment can be told.
let server: Server;
let answer: (req: IncomingMessage, res: ServerResponse, body: string) => void;

beforeAll(async () => {
  server = createServer((req, res) => {
    let body = "";
    req.on("data", (d) => {
      body += d;
    });
    req.on("end", () => answer(req, res, body));
  });
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  const { port } = server.address() as AddressInfo;
  (window as unknown as { happyDOM: { setURL(u: string): void } }).happyDOM.setURL(`http://127.0.0.1:${port}/mon/query`);
  const base = document.createElement("base");
  base.href = "/mon/";
  document.head.append(base);
});
afterAll(() => server.close());
beforeEach(() => {
  answer = (_req, res) => res.end("{}");
});

const failed = async (p: Promise<unknown>) => {
  const err = await p.then(
    () => undefined,
    (e) => e,
  );
  expect(err).toBeInstanceOf(ApiError);
  return err as ApiError;
};

test("paths are below the base", () => {
  expect(basePath()).toBe("/mon/");
  expect(apiURL("api/v1/query", { query: "a b", "match[]": ["x", "y"], none: undefined })).toBe(
    "/mon/api/v1/query?query=a+b&match%5B%5D=x&match%5B%5D=y",
  );
});

test("the envelope is opened, warnings are kept", async () => {
  answer = (req, res) => res.end(JSON.stringify({ status: "success", data: req.url, warnings: ["peer z2 is missing"] }));
  expect(await requestPrometheus("query", { params: { query: "up" } })).toEqual({
    data: "/mon/api/v1/query?query=up",
    warnings: ["peer z2 is missing"],
    infos: [],
  });
});

test("long questions are posted", async () => {
  answer = (req, res, body) => res.end(JSON.stringify({ status: "success", data: `${req.method} ${req.url} ${body.length}` }));
  expect((await requestPrometheus("query", { params: { query: "a".repeat(5000) } })).data).toBe("POST /mon/api/v1/query 5006");
});

test("errors have the server's words", async () => {
  answer = (_req, res) => {
    res.statusCode = 422;
    res.end(JSON.stringify({ status: "error", errorType: "execution", error: "found duplicate series" }));
  };
  const err = await failed(requestPrometheus("query"));
  expect([err.message, err.status, err.type]).toEqual(["found duplicate series", 422, "execution"]);
  answer = (_req, res) => {
    res.statusCode = 400;
    res.end(JSON.stringify({ code: 400, message: "bad matcher" }));
  };
  expect((await failed(requestJSON("alertmanager/api/v2/silences"))).message).toBe("bad matcher");
  answer = (_req, res) => {
    res.statusCode = 503;
    res.end("Service Unavailable: replaying\n");
  };
  expect((await failed(requestText("-/ready"))).message).toBe("Service Unavailable: replaying");
  answer = (_req, res) => {
    res.statusCode = 502;
    res.end("<html>proxy</html>");
  };
  expect((await failed(requestJSON("x"))).message).toContain("502");
  answer = (_req, res) => res.end("<html>sign in</html>");
  expect((await failed(requestJSON("x"))).message).toContain("no JSON");
});

test("nobody there is an error too, and being called off is none of ours", async () => {
  answer = (req) => req.socket.destroy();
  expect((await failed(requestJSON("x"))).status).toBe(0);
  const abort = new AbortController();
  answer = () => abort.abort();
  const err = await requestJSON("x", { signal: abort.signal }).catch((e) => e);
  expect(err).not.toBeInstanceOf(ApiError);
});

test("what several questions failed with alike is said once", () => {
  const [gone, down] = [new Error("no answer"), new Error("it starts")];
  expect(distinct([new Error("no answer"), gone], gone)).toEqual([]);
  expect(distinct([down, new Error("it starts")], gone)).toEqual([down]);
  expect(distinct([null, down], null)).toEqual([down]);
});
