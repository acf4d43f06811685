// The one place that asks the server. Paths are relative to <base href>, which the server writes, so that everything
// works below any path.

export interface Answer<T> {
  data: T;
  warnings: string[];
  infos: string[];
}

/** What went wrong, in the server's own words where it had any. */
export class ApiError extends Error {
  constructor(
    message: string,
    /** 0 = no answer at all. */
    readonly status: number,
    /** Prometheus's errorType: bad_data, execution, timeout, … */
    readonly type: string = "",
  ) {
    super(message);
    this.name = "ApiError";
  }
}

/** Errors that say something: each once, and none that is said below as well. */
export function distinct(errors: (Error | null | false)[], below: Error | null): Error[] {
  const said = new Set([below?.message]);
  return errors.filter((e): e is Error => e instanceof Error && !said.has(e.message) && said.add(e.message) !== undefined);
}

export type Params = Record<string, string | number | boolean | string[] | undefined>;

export interface Request {
  params?: Params;
  signal?: AbortSignal;
  method?: "GET" | "POST" | "PUT" | "DELETE";
  /** Sent as JSON. */
  json?: unknown;
  /** Reads the answer in place of JSON.parse. */
  parse?: (text: string) => unknown;
}

/** The path below which this UI is, with slashes at both ends. */
export function basePath(): string {
  return new URL(".", document.baseURI).pathname;
}

export function apiURL(path: string, params?: Params): string {
  const search = encode(params).toString();
  return new URL(path.replace(/^\//, ""), document.baseURI).pathname + (search ? `?${search}` : "");
}

function encode(params: Params = {}): URLSearchParams {
  const out = new URLSearchParams();
  for (const [k, v] of Object.entries(params)) {
    if (v === undefined) continue;
    for (const one of Array.isArray(v) ? v : [v]) out.append(k, String(one));
  }
  return out;
}

// Proxies cut longer addresses off. Prometheus takes the same parameters as a form.
const longestURL = 4000;

async function send(path: string, { params, signal, method = "GET", json }: Request): Promise<Response> {
  const init: RequestInit = { method, credentials: "same-origin", headers: { Accept: "application/json" } };
  if (signal) init.signal = signal;
  let url = apiURL(path, params);
  if (json !== undefined) {
    init.body = JSON.stringify(json);
    init.headers = { ...init.headers, "Content-Type": "application/json" };
  } else if (method === "GET" && url.length > longestURL) {
    init.method = "POST";
    init.body = encode(params);
    url = apiURL(path);
  }
  try {
    return await fetch(url, init);
  } catch (err) {
    if (signal?.aborted) throw err;
    throw new ApiError("The replica does not answer. Is it running, and is the network there?", 0);
  }
}

async function failure(res: Response): Promise<ApiError> {
  const text = (await res.text().catch(() => "")).trim();
  try {
    const body = JSON.parse(text);
    if (typeof body === "string") return new ApiError(body, res.status);
    return new ApiError(body.error ?? body.message ?? text, res.status, body.errorType ?? "");
  } catch {
    const plain = text !== "" && !text.startsWith("<") ? text : "";
    return new ApiError(plain.slice(0, 2000) || `The server answered ${res.status} ${res.statusText}`.trim(), res.status);
  }
}

/** Asks for JSON without an envelope: Tocsin's own API, and Alertmanager's. */
export async function requestJSON<T>(path: string, request: Request = {}): Promise<T> {
  const res = await send(path, request);
  if (!res.ok) throw await failure(res);
  const text = await res.text();
  if (text === "") return undefined as T;
  try {
    return (request.parse ?? JSON.parse)(text) as T;
  } catch {
    throw new ApiError("The answer is not what it should be: it is no JSON. A proxy may have answered instead.", res.status);
  }
}

/** Asks for plain text: /-/ready, /-/reload. */
export async function requestText(path: string, request: Request = {}): Promise<string> {
  const res = await send(path, request);
  if (!res.ok) throw await failure(res);
  return res.text();
}

interface Envelope<T> {
  status: "success" | "error";
  data: T;
  error?: string;
  errorType?: string;
  warnings?: string[];
  infos?: string[];
}

/** Asks Prometheus's API: path is below /api/v1. */
export async function requestPrometheus<T>(path: string, request: Request = {}): Promise<Answer<T>> {
  const e = await requestJSON<Envelope<T>>(`api/v1/${path}`, request);
  if (e?.status !== "success") throw new ApiError(e?.error ?? "The answer is not one of Prometheus's API.", 200, e?.errorType ?? "");
  return { data: e.data, warnings: e.warnings ?? [], infos: e.infos ?? [] };
}
