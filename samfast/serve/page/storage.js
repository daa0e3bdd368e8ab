// Work that this browser keeps: unsaved objects, and photos that were dropped on the page.

const STORE = "work";

let opened = null;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("samfast", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function run(mode, call) {
  const store = (await database()).transaction(STORE, mode).objectStore(STORE);
  return new Promise((resolve, reject) => {
    const request = call(store);
    // A write counts when its transaction is complete, not when it is accepted.
    store.transaction.oncomplete = () => resolve(request.result);
    store.transaction.onabort = () => reject(store.transaction.error);
  });
}

export const kept = {
  get: (key) => run("readonly", (store) => store.get(key)),
  put: (key, value) => run("readwrite", (store) => store.put(value, key)),
  remove: (key) => run("readwrite", (store) => store.delete(key)),
  keys: () => run("readonly", (store) => store.getAllKeys()),
};

/** Settings of this browser, such as the opacity. */
export const settings = {
  get(name, otherwise) {
    try {
      return JSON.parse(localStorage.getItem(`samfast.${name}`)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  set(name, value) {
    try {
      localStorage.setItem(`samfast.${name}`, JSON.stringify(value));
    } catch {
      // Storage that is full or forbidden costs a setting, no work.
    }
  },
};
