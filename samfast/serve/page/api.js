// The server's HTTP interface, as functions that answer or throw one kind of error.

/**
 * What went wrong, in a sentence for the user.
 *
 * status  the HTTP status; 0 where no server answered
 * code    the server's own word for it
 * body    what it answered, if that was JSON
 */
export class ServerError extends Error {
  constructor(message, { status = 0, code = "", body = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.body = body;
  }

  /** Whether nothing answered, or a server that is starting, stopping or full. */
  get passing() {
    return this.status === 0 || [429, 502, 503, 504].includes(this.status);
  }
}

const TOKEN = "samfast.token";

export class Api {
  /** askToken: called when the server wants a token; resolves to one, or to null. */
  constructor(askToken) {
    this.askToken = askToken;
    this.onAnswer = () => {};
  }

  /** The response of a request that succeeded. */
  async request(path, { method = "GET", body, headers = {}, signal } = {}) {
    const all = { ...headers };
    let content = body;
    const binary = body instanceof Blob || body instanceof ArrayBuffer;
    if (body !== undefined && !binary) {
      content = JSON.stringify(body);
      all["Content-Type"] = "application/json";
    }
    for (;;) {
      const token = sessionStorage.getItem(TOKEN);
      if (token) all.Authorization = `Bearer ${token}`;
      let response;
      try {
        response = await fetch(path, {
          method, body: content, headers: all, signal, cache: "no-store",
        });
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ServerError("The server does not answer.");
      }
      if (response.status === 401) {
        const given = await this.askToken(Boolean(token));
        if (given) {
          sessionStorage.setItem(TOKEN, given);
          continue;
        }
      }
      if (!response.ok) throw await errorOf(response);
      this.onAnswer();
      return response;
    }
  }

  async json(path, options) {
    const response = await this.request(path, options);
    try {
      return await response.json();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError("The server broke off in the middle of an answer.");
    }
  }

  /** What the server was started for: {"folder": {...} or null, "model": ...}. */
  session(signal) {
    return this.json("v1/page", { signal });
  }

  /** {"id", "width", "height"} of a photo: a Blob, or {"path"} of one below the server's root. */
  addImage(source, signal) {
    return this.json("v1/images", { method: "POST", body: source, signal });
  }

  /**
   * Add an image and wait until it is encoded, which adding it only begins.
   *
   * The answer to the click in its middle is not used; it comes when the embedding is there.
   */
  async encode(source, signal) {
    const image = await this.addImage(source, signal);
    const middle = [image.width >> 1, image.height >> 1];
    await this.predict(image.id, [{ points: [middle], labels: [1] }], false, signal);
    return image;
  }

  /** The objects that prompts yield, each a list of masks. */
  async predict(id, objects, multimask, signal) {
    const path = `v1/images/${encodeURIComponent(id)}/predict`;
    const body = { objects, multimask, format: "rle" };
    return (await this.json(path, { method: "POST", body, signal })).objects;
  }

  /**
   * Call `onRecord` with each record of everything in the photo as soon as it arrives, and
   * `progress` with the share of the clicks that is done.
   *
   * pointsPerSide  of the grid of clicks
   */
  async segment(id, { pointsPerSide, onRecord, progress, signal }) {
    const path = `v1/images/${encodeURIComponent(id)}/segment`;
    const body = { progress: true, points_per_side: pointsPerSide };
    const response = await this.request(path, { method: "POST", body, signal });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ServerError("The server broke off while it looked for everything.");
      }
      rest += part.done ? "\n" : part.value;
      const lines = rest.split("\n");
      rest = lines.pop();
      for (const line of lines.filter((each) => each.trim())) {
        const record = JSON.parse(line);
        if (record.error) throw new ServerError(record.error.message, record.error);
        if (record.segmentation) onRecord(record);
        else progress(record.done / record.total);
      }
      if (part.done) return;
    }
  }

  /** Have the photos of these paths encoded when nothing else waits. */
  async prewarm(paths) {
    try {
      await this.request("v1/prewarm", { method: "POST", body: { paths } });
    } catch {
      // They are encoded when they are opened instead.
    }
  }

  /** A photo of the folder as a Blob that browsers can show. */
  async photo(name, signal) {
    return (await this.request(`v1/folder/photos/${encodePath(name)}`, { signal })).blob();
  }

  async thumbnail(name, signal) {
    return (await this.request(`v1/folder/thumbnails/${encodePath(name)}`, { signal })).blob();
  }

  /** {"revision", "annotations", "categories", "kept_aside"} of a photo. */
  annotations(name, signal) {
    return this.json(`v1/folder/annotations/${encodePath(name)}`, { signal });
  }

  /** The folder's COCO file as a Blob. */
  async wholeFile() {
    return (await this.request("v1/folder/annotations.json")).blob();
  }

  /** Write a photo's annotations, if they still are of that revision; answers as `annotations`. */
  save(name, revision, body) {
    const path = `v1/folder/annotations/${encodePath(name)}`;
    return this.json(path, { method: "PUT", body, headers: { "If-Match": `"${revision}"` } });
  }
}

function encodePath(name) {
  return name.split("/").map(encodeURIComponent).join("/");
}

async function errorOf(response) {
  let body = null;
  try {
    body = await response.json();
  } catch {
    // A proxy's page, or nothing: the status has to do.
  }
  const said = body?.error ?? {};
  const message = said.message ?? `The server answered ${response.status} ${response.statusText}.`;
  return new ServerError(message, { status: response.status, code: said.code ?? "", body });
}
