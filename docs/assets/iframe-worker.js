// A page that is opened from disk may not start a worker, which the search box of the theme asks for.
// So there a hidden frame does a worker's work: it loads the same script, in the page's own thread.
(() => {
  if (location.protocol !== "file:") return;
  class IFrameWorker extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.title = "search";
      document.body.appendChild(frame);
      const inside = frame.contentWindow;
      inside.IFrameWorker = IFrameWorker;
      inside.importScripts = (...urls) =>
        urls.reduce((before, next) => before.then(() => load(inside, next)), Promise.resolve());
      // What the script calls to answer is a message to whoever holds this worker.
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      load(inside, url).then(() => {
        for (const data of this.waiting.splice(0)) this.hand(inside, data);
        this.waiting.push = (data) => this.hand(inside, data);
      });
    }

    hand(inside, data) {
      inside.dispatchEvent(new inside.MessageEvent("message", { data }));
    }

    postMessage(data) {
      this.waiting.push(data);
    }
  }

  function load(inside, url) {
    return new Promise((done, failed) => {
      const script = inside.document.createElement("script");
      script.src = url;
      script.onload = done;
      script.onerror = failed;
      inside.document.body.appendChild(script);
    });
  }

  window.IFrameWorker = IFrameWorker;
  window.Worker = IFrameWorker;
})();
